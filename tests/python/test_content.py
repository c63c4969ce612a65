# SPDX-License-Identifier: Apache-2.0
"""What besides tokens shapes KV: adapters by their files, multimodal input by its tensors.
The rest has no identity and is not cached."""

import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import torch
from shadowserve import model
from shadowserve.vllm import content, media
from shadowserve.vllm.content import Adapters
from shadowserve.vllm.media import Media
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)

UUID = "ab" * 32  # looks like a hash
PIXELS = torch.arange(48, dtype=torch.bfloat16).reshape(3, 16)


def Content(request, adapters=None, media=None):
    return content.Content(request, adapters or Adapters(), media or Media())


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


def image(offset, length, pixels=PIXELS, name=UUID, **others):
    fields = {"pixel_values": pixels, **others}
    elements = {
        key: MultiModalFieldElem(data=value, field=MultiModalBatchedField())
        for key, value in fields.items()
    }
    return MultiModalFeatureSpec(
        data=MultiModalKwargsItem(elements),
        modality="image",
        identifier=name,
        mm_position=PlaceholderRange(offset=offset, length=length),
        mm_hash=name,
    )


def digest(*features, media=None):
    return Content(request(mm_features=list(features)), media=media).extra(0, 4)


def adapter(folder, content=b"weights", inplace=False):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(content)
    return SimpleNamespace(
        lora_int_id=1, lora_name="name", lora_path=str(folder), load_inplace=inplace
    )


def test_tokens_alone_need_no_digest():
    assert Content(request()).extra(0, 3) is None


def test_an_image_marks_the_chunks_it_lies_in():
    extra = digest(image(300, 300))
    chunks = [extra[at : at + 32] for at in range(0, 128, 32)]
    assert chunks[0] == chunks[3] == bytes(32)
    assert len({*chunks}) == 3, "the second and third differ in where the image begins"
    assert digest(image(300, 300, PIXELS + 1))[32:64] != chunks[1]
    assert Content(request(mm_features=[image(300, 300)])).extra(1, 2) == extra[32:96]


def test_an_image_is_its_tensors():
    base = digest(image(0, 300))
    grid = torch.tensor([1, 4, 4])
    transposed = PIXELS.t().contiguous().t()  # the same values, otherwise in memory
    masked = image(0, 300)
    masked.mm_position = PlaceholderRange(0, 300, is_embed=torch.ones(300, dtype=torch.bool))
    assert digest(image(0, 300, PIXELS.clone())) == digest(image(0, 300, transposed)) == base
    different = [
        digest(image(0, 300, PIXELS.view(torch.int16))),
        digest(image(0, 300, PIXELS.reshape(16, 3))),
        digest(image(0, 300, [PIXELS])),
        digest(image(0, 300, image_grid_thw=grid)),
        digest(image(0, 300, image_grid_thw=grid + 1)),
        digest(image(0, 300, image_grid_thw=grid[0])),
        digest(masked),
    ]
    assert len({base, *different}) == 8


@pytest.mark.parametrize("algorithm", ["blake3", "sha256", "sha512"])
def test_a_clients_uuid_is_no_content(algorithm):
    """vLLM takes it as it is, or hashes it with the processor's settings."""
    mixed = MultiModalHasher.hash_kwargs(
        algorithm, model_id="m", image=UUID, mm_processor_kwargs={"size": 1}
    )
    for name in (UUID, mixed):
        one, other = image(0, 300, name=name), image(0, 300, PIXELS + 1, name=name)
        assert digest(one) != digest(other), "two engines, one name"
        assert digest(one) == digest(image(0, 300, name="another")), "one image, two names"


def test_a_name_with_two_contents_is_not_cached_any_more():
    """vLLM may have computed with either: its caches go by the name."""
    media = Media()
    assert digest(image(0, 300), media=media)
    for pixels in (PIXELS + 1, PIXELS):
        with pytest.raises(model.NotKeyable, match="several contents"):
            digest(image(0, 300, pixels), media=media)
    assert digest(image(0, 300, PIXELS + 1, name="another"), media=media)


@pytest.mark.parametrize("data", [7, [1, 2], None, "text", {}, PIXELS.to_sparse()], ids=str)
def test_data_that_is_elsewhere_is_no_content(data):
    """In vLLM's shared memory, for one, only addresses reach the scheduler."""
    with pytest.raises(model.NotKeyable):
        digest(image(0, 300, data))
    absent = image(0, 300)
    absent.data = None
    with pytest.raises(model.NotKeyable):
        digest(absent)


def test_hashing_is_bounded(monkeypatch):
    monkeypatch.setattr(media, "BYTES_MAX", PIXELS.nbytes)
    assert digest(image(0, 300))
    with pytest.raises(model.NotKeyable, match="more than"):
        digest(image(0, 300, image_grid_thw=torch.tensor([1])))


@pytest.mark.parametrize(
    "unkeyable",
    [
        {"prompt_embeds": object()},
        {"prompt_is_token_ids": [True]},
        {"pooling_params": object()},
        {"resumable": True},
    ],
)
def test_what_has_no_content_is_refused(unkeyable):
    with pytest.raises(model.NotKeyable):
        Content(request(**unkeyable))


def read(adapters, lora):
    """The digest of an adapter, once it was read."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return adapters.digest(lora)
        except model.NotKeyable as reason:
            if "not been read yet" not in str(reason):
                raise
        assert time.monotonic() < deadline, "the adapter was not read"
        time.sleep(0.01)


@pytest.fixture
def adapters():
    adapters = Adapters()
    yield adapters
    adapters.close()


def test_adapters_count_by_their_files(tmp_path, adapters):
    def extra(lora):
        read(adapters, lora)
        return Content(request(lora_request=lora), adapters).extra(0, 1)

    one = extra(adapter(tmp_path / "a"))
    other = adapter(tmp_path / "b")
    other.lora_int_id = 2
    assert extra(other) == one
    third = adapter(tmp_path / "c", b"other weights")
    third.lora_int_id = 3
    assert extra(third) != one
    assert one != bytes(32)


def test_an_adapter_is_not_cached_before_it_is_read(tmp_path, adapters, monkeypatch):
    """Reading takes a thread of its own, never the scheduler's."""
    go_on, threads = threading.Event(), []
    digest = model.adapter_digest

    def slow(folder):
        threads.append(threading.current_thread())
        assert go_on.wait(30)
        return digest(folder)

    monkeypatch.setattr(model, "adapter_digest", slow)
    lora = adapter(tmp_path / "a")
    for _ in range(3):
        with pytest.raises(model.NotKeyable, match="not been read yet"):
            Content(request(lora_request=lora), adapters)
    go_on.set()
    assert read(adapters, lora) == digest(tmp_path / "a")
    (thread,) = threads
    assert thread is not threading.current_thread()


def test_an_adapter_that_changes_while_it_is_read(tmp_path, adapters, monkeypatch):
    digest = model.adapter_digest

    def changed(folder):
        adapter(folder, b"new weights")
        return digest(folder)

    monkeypatch.setattr(model, "adapter_digest", changed)
    with pytest.raises(model.NotKeyable, match="changed"):
        read(adapters, adapter(tmp_path / "a"))


def test_an_adapter_that_cannot_be_read(tmp_path, adapters):
    lora = adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(model.NotKeyable, match="no adapter weights"):
            read(adapters, lora)


def test_an_adapter_that_changes_is_not_cached_any_more(tmp_path, adapters):
    lora = adapter(tmp_path / "a")
    first = read(adapters, lora)
    adapter(tmp_path / "a", b"new weights")
    for _ in range(2):
        with pytest.raises(model.NotKeyable, match="changed"):
            adapters.digest(lora)
    assert first


def test_an_adapter_loaded_in_place_is_read_again(tmp_path, adapters):
    first = read(adapters, adapter(tmp_path / "a"))
    second = read(adapters, adapter(tmp_path / "a", b"new weights", inplace=True))
    assert first != second
