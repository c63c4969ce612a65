# SPDX-License-Identifier: Apache-2.0
"""What besides tokens shapes KV: adapters by their files, multimodal input by its content hash.
The rest has no identity and is not cached."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from shadowserve import model
from shadowserve.vllm.content import Adapters, Content

HASH = "ab" * 32


def request(**changes):
    plain = {
        "prompt_embeds": None,
        "prompt_is_token_ids": None,
        "pooling_params": None,
        "resumable": False,
        "lora_request": None,
        "mm_features": [],
    }
    return SimpleNamespace(**{**plain, **changes})


def image(offset, length, mm_hash=HASH):
    return SimpleNamespace(
        modality="image",
        mm_hash=mm_hash,
        mm_position=SimpleNamespace(offset=offset, length=length),
    )


def adapter(folder, content=b"weights", inplace=False):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(content)
    return SimpleNamespace(
        lora_int_id=1, lora_name="name", lora_path=str(folder), load_inplace=inplace
    )


def test_tokens_alone_need_no_digest():
    assert Content(request(), Adapters()).extra(0, 3) is None


def test_an_image_marks_the_chunks_it_lies_in():
    extra = Content(request(mm_features=[image(300, 300)]), Adapters()).extra(0, 4)
    chunks = [extra[at : at + 32] for at in range(0, 128, 32)]
    assert chunks[0] == chunks[3] == bytes(32)
    assert len({*chunks}) == 3, "the second and third differ in where the image begins"
    other = Content(request(mm_features=[image(300, 300, "cd" * 32)]), Adapters()).extra(0, 4)
    assert other[32:64] != chunks[1]
    assert Content(request(mm_features=[image(300, 300)]), Adapters()).extra(1, 2) == extra[32:96]


@pytest.mark.parametrize(
    "unkeyable",
    [
        {"prompt_embeds": object()},
        {"prompt_is_token_ids": [True]},
        {"pooling_params": object()},
        {"resumable": True},
        {"mm_features": [image(0, 1, None)]},
        {"mm_features": [image(0, 1, "a-clients-own-name")]},
    ],
)
def test_what_has_no_content_is_refused(unkeyable):
    with pytest.raises(model.NotKeyable):
        Content(request(**unkeyable), Adapters())


def test_adapters_count_by_their_files(tmp_path):
    adapters = Adapters()
    one = Content(request(lora_request=adapter(tmp_path / "a")), adapters).extra(0, 1)
    other = adapter(tmp_path / "b")
    other.lora_int_id = 2
    assert Content(request(lora_request=other), adapters).extra(0, 1) == one
    third = adapter(tmp_path / "c", b"other weights")
    third.lora_int_id = 3
    assert Content(request(lora_request=third), adapters).extra(0, 1) != one
    assert one != bytes(32)


def test_an_adapter_that_changes_is_not_cached_any_more(tmp_path):
    adapters = Adapters()
    lora = adapter(tmp_path / "a")
    first = adapters.digest(lora)
    adapter(tmp_path / "a", b"new weights")
    for _ in range(2):
        with pytest.raises(model.NotKeyable, match="changed"):
            adapters.digest(lora)
    assert first


def test_an_adapter_loaded_in_place_is_read_again(tmp_path):
    adapters = Adapters()
    first = adapters.digest(adapter(tmp_path / "a"))
    second = adapters.digest(adapter(tmp_path / "a", b"new weights", inplace=True))
    assert first != second
