# ShadowServe: the few commands a person types. Each does all the set-up it needs and says what it
# does; a second run is quick. The build itself is Meson's (meson.build).
#
#   make demo     two vLLM engines share a prompt through a store [STORE=file|redis] [MODEL=path|smollm2]
#   make test     every test; ends with "N passed, N failed"      [ONLY=c|sanitizers|arm64|static|python|rdma|vllm]
#   make calibrate   measure a model, write its profile           [MODEL=path] [CALIBRATE_ARGS=...]
#   make bench    every measurement, docs/benchmarks.md           [PART=name|smoke] [BENCH_ARGS=...]
#   make bench-page  that page again, from its JSON
#   make bench-gpu   step times of a GPU engine while KV arrives; bench/gpu/README.md
#   make test-rdma   the rdma way in a guest with a software RDMA device      [SSV_ROUNDS=100]
#   make setup-dpdk  DPDK for the dpdk inflate engine; `make test` does it where it can
#   make fuzz     each SIMD level against the scalar kernels      [SSV_FUZZ_SECONDS=600]
#   make install  library, header, programs                       [PREFIX=/usr/local] [DESTDIR=]
#   make deb      Debian packages, amd64 and arm64 (cross-built), in build/
#   make clean    remove build/ (.venv stays; remove it by hand)

VENV ?= .venv
STORE ?= file
MODEL ?= models/docs-6m
PREFIX ?= /usr/local
PART ?=
PYTHON = $(VENV)/bin/python

SSV_FUZZ_SECONDS ?= 600

.PHONY: setup-dpdk dpdk test-rdma rdma demo test calibrate fuzz bench bench-page bench-gpu install deb clean build system venv

build: system
	@packaging/build.sh build/release

demo: build venv
	@$(PYTHON) bench/demo.py --store $(STORE) --model $(MODEL)

test: dpdk rdma build venv
	@$(PYTHON) tests/run.py $(if $(ONLY),--only $(ONLY))

calibrate: build venv
	@PYTHONPATH=python SHADOWSERVE_PYTHON=$(PYTHON) \
		SHADOWSERVE_CODEC_LIBRARY=build/release/python/native/libshadowserve-codec.so \
		build/release/cli/shadowserve calibrate $(MODEL) $(CALIBRATE_ARGS)

test-rdma: system
	@packaging/setup_optional.sh rdma
	@packaging/build.sh build/release
	@python3 tests/rdma/guest.py build/release

rdma: system
	@packaging/setup_optional.sh rdma --if-possible

setup-dpdk: system
	@packaging/setup_optional.sh dpdk

dpdk: system
	@packaging/setup_optional.sh dpdk --if-possible

fuzz: system
	@packaging/build.sh build/asan -Doptimization=1 -Ddebug=true -Db_lundef=false -Dwerror=false \
		-Db_sanitize=address,undefined
	@UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 SSV_FUZZ_SECONDS=$(SSV_FUZZ_SECONDS) build/asan/tests/codec/fuzz_codec

bench: build venv
	@packaging/setup_venv.sh $(VENV) bench
	@$(PYTHON) bench/run.py $(PART) $(BENCH_ARGS)

bench-page: venv
	@packaging/setup_venv.sh $(VENV) bench
	@$(PYTHON) bench/run.py --page

bench-gpu: build
	@sh bench/gpu/pack.sh build/gpu-bench
	@sh build/gpu-bench/bench/gpu/run.sh --out build/bench --batches 16x4096,1x4096,64x2048

install: system
	@packaging/build.sh build/install --prefix=$(PREFIX) -Dtests=false
	@DESTDIR=$(DESTDIR) meson install -C build/install --quiet
	@echo "installed under $(DESTDIR)$(PREFIX)"

deb: system
	@packaging/deb.sh amd64
	@packaging/deb.sh arm64

clean:
	rm -rf build

system:
	@packaging/setup_system.sh

venv: system
	@packaging/setup_venv.sh $(VENV)
