# SPDX-License-Identifier: Apache-2.0
"""Identity by content: copies agree, anything that changes KV differs, the rest is refused."""

import json
import shutil
import struct

import pytest
from shadowserve import model


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_model(folder, *, config=None, seed=0, size=65536):
    folder.mkdir()
    config = config or {"hidden_size": 8, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    raw = bytes((i * 7 + seed) % 251 for i in range(size))
    write_safetensors(
        folder / "model.safetensors",
        {"a": ("BF16", [size // 2], raw), "b": ("BF16", [4], b"12345678")},
    )
    return folder


def test_a_copy_is_the_same_model(tmp_path):
    one = make_model(tmp_path / "one")
    other = tmp_path / "renamed"
    shutil.copytree(one, other)
    assert model.identify(one, "bfloat16") == model.identify(other, "bfloat16")


def test_what_changes_kv_changes_the_identity(tmp_path):
    base = make_model(tmp_path / "base")
    changed = [
        model.identify(make_model(tmp_path / "weights", seed=1), "bfloat16"),
        model.identify(
            make_model(tmp_path / "config", config={"hidden_size": 9, "rope_theta": 10000.0}),
            "bfloat16",
        ),
        model.identify(base, "float16"),
        model.identify(base, "bfloat16", {"rope_theta": 1.0}),
        model.identify(base, "bfloat16", None, {"max_model_len": 4}),
    ]
    assert len({model.identify(base, "bfloat16"), *changed}) == 6


def with_code(folder, text="x = 1", reference="modeling_own.Own"):
    config = {"hidden_size": 8, "auto_map": {"AutoModelForCausalLM": reference}}
    make_model(folder, config=config)
    (folder / "modeling_own.py").write_text(text)
    return folder


def test_code_of_the_model_is_part_of_it(tmp_path):
    def identify(folder, text, with_it=True):
        return model.identify(with_code(tmp_path / folder, text), "bfloat16", with_code=with_it)

    one, same, other = (identify(*what) for what in (("a", "x = 1"), ("b", "x = 1"), ("c", "x")))
    assert one == same and one != other
    assert identify("d", "x = 1", False) == identify("e", "x = 2", False), "code that does not run"
    (tmp_path / "a" / "deeper").mkdir()
    (tmp_path / "a" / "deeper" / "rotary.py").write_text("")
    assert model.identify(tmp_path / "a", "bfloat16", with_code=True) != one


@pytest.mark.parametrize("reference", ["somebody/else--modeling_own.Own", "modeling_gone.Own"])
def test_code_of_elsewhere_is_refused(tmp_path, reference):
    folder = with_code(tmp_path / "model", reference=reference)
    with pytest.raises(model.NotKeyable, match="the code of"):
        model.identify(folder, "bfloat16", with_code=True)
    assert model.identify(folder, "bfloat16")


@pytest.mark.parametrize("where", [0, 32768 - 100, 65535])
def test_start_middle_and_end_of_a_tensor_are_sampled(tmp_path, where):
    one = make_model(tmp_path / "one")
    before = model.identify(one, "bfloat16")
    path = one / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    raw[start + where] ^= 1
    path.write_bytes(raw)
    assert model.identify(one, "bfloat16") != before


def test_what_does_not_reach_kv_is_ignored(tmp_path):
    one = make_model(tmp_path / "one")
    config = {"hidden_size": 8, "rope_theta": 10000.0, "transformers_version": "9", "use_cache": 1}
    other = make_model(tmp_path / "other", config=config)
    (other / "tokenizer.json").write_text("{}")
    assert model.identify(one, "bfloat16") == model.identify(other, "bfloat16")


def test_shards_do_not_matter(tmp_path):
    one = make_model(tmp_path / "one")
    other = tmp_path / "sharded"
    other.mkdir()
    shutil.copy(one / "config.json", other)
    raw = bytes((i * 7) % 251 for i in range(65536))
    write_safetensors(other / "x-1.safetensors", {"b": ("BF16", [4], b"12345678")})
    write_safetensors(other / "x-2.safetensors", {"a": ("BF16", [32768], raw)})
    index = {"weight_map": {"a": "x-2.safetensors", "b": "x-1.safetensors"}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model.identify(one, "bfloat16") == model.identify(other, "bfloat16")


@pytest.mark.parametrize("damage", ["no config", "no weights", "short", "outside", "no json"])
def test_what_cannot_be_keyed_is_refused(tmp_path, damage):
    one = make_model(tmp_path / "one")
    weights = one / "model.safetensors"
    if damage == "no config":
        (one / "config.json").unlink()
    elif damage == "no weights":
        weights.rename(one / "pytorch_model.bin")
    elif damage == "short":
        weights.write_bytes(b"1234")
    elif damage == "outside":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        (one / "config.json").write_text("{")
    with pytest.raises(model.NotKeyable):
        model.identify(one, "bfloat16")


def header(entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors.index.json", b"{"),
        ("model.safetensors.index.json", b"[]"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}'),
        ("model.safetensors", header([])),
        ("model.safetensors", header({"a": {"dtype": "BF16", "shape": [4]}})),
        ("model.safetensors", header({"a": {"data_offsets": ["x", 1]}})),
        ("model.safetensors", header({"a": {"data_offsets": [0]}})),
    ],
)
def test_damaged_files_have_no_identity_and_are_named(tmp_path, name, content):
    one = make_model(tmp_path / "one")
    (one / name).write_bytes(content)
    with pytest.raises(model.NotKeyable, match=str(one)):
        model.identify(one, "bfloat16")


def test_recorded_quantization(tmp_path):
    record = {"quantization_config": {"quant_method": "awq"}}
    assert model.recorded_quantization(make_model(tmp_path / "q", config=record)) == "awq"
    assert model.recorded_quantization(make_model(tmp_path / "p")) == ""


def test_adapters_by_their_bytes(tmp_path):
    def adapter(name, last):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(bytes(10000) + last)
        return folder

    one, same, other = adapter("one", b"a"), adapter("same", b"a"), adapter("other", b"b")
    assert model.adapter_digest(one) == model.adapter_digest(same)
    assert model.adapter_digest(one) != model.adapter_digest(other)
    (one / "adapter_model.safetensors").unlink()
    with pytest.raises(model.NotKeyable):
        model.adapter_digest(one)
