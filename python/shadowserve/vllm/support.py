# SPDX-License-Identifier: Apache-2.0
"""Which engines are served, and what their KV is.

Everything that a configuration of vLLM must satisfy is checked here, in one place, and each refusal
is one sentence for the user. What passes is described by Served, which is all that the scheduler's
and the workers' sides know of the model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowserve import model
from shadowserve.binding import (
    BLOCK_TOKENS_MAX,
    CHUNK_TOKENS,
    ENGINE_ID_MAX,
    RANKS_MAX,
    Dtype,
    KeyRoot,
)
from shadowserve.layout import Shape

_LOAD_FORMATS = ("auto", "safetensors", "hf", "fastsafetensors", "runai_streamer")
_KV_DTYPES = {
    "bfloat16": Dtype.BF16,
    "float16": Dtype.FP16,
    "float32": Dtype.FP32,
    "fp8": Dtype.E4M3,
    "fp8_e4m3": Dtype.E4M3,
    "fp8_e5m2": Dtype.E5M2,
}
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "su", "ntk")


class NotServed(ValueError):
    """This engine cannot be served; the text is one sentence."""


@dataclass(frozen=True)
class Served:
    engine_id: str
    identity: model.Identity
    shapes: tuple[Shape, ...]  # of each rank
    block_tokens: int
    layer_names: tuple[str, ...]  # in the model's order
    kv_cache_dtype: str
    may_load: bool = True
    may_store: bool = True

    def key_root(self, rank: int, name_space: str, salt: str) -> KeyRoot:
        shape = self.shapes[rank]
        return KeyRoot(
            dtype=shape.dtype,
            layer0=0,
            layers_count=shape.layers,
            layers_total=shape.layers,
            rank=rank,
            ranks_count=shape.ranks_count,
            parts=shape.parts(),
            model_digest=self.identity.digest,
            rope_digest=self.identity.rope_digest,
            name_space=name_space,
            tenant_salt=salt,
        )


def served(vllm_config: Any, kv_cache_config: Any) -> Served:
    """What is served, or NotServed. Reads the model's files."""
    _check_parallelism(vllm_config)
    spec, layer_names = _attention_spec(kv_cache_config)
    if vllm_config.speculative_config is not None and _drafts_with_kv(vllm_config):
        raise NotServed("speculative decoding with a draft model's own KV is not served yet")
    block_tokens = int(vllm_config.cache_config.block_size)
    if block_tokens > BLOCK_TOKENS_MAX or CHUNK_TOKENS % block_tokens:
        raise NotServed(
            f"a block size of {block_tokens} tokens is not served: "
            f"it must divide a chunk of {CHUNK_TOKENS}"
        )
    return Served(
        engine_id=_engine_id(vllm_config.kv_transfer_config.engine_id),
        identity=identity_of(vllm_config),
        shapes=_shapes(vllm_config, spec, len(layer_names)),
        block_tokens=block_tokens,
        layer_names=layer_names,
        kv_cache_dtype=vllm_config.cache_config.cache_dtype,
        may_load=vllm_config.kv_transfer_config.is_kv_consumer,
        may_store=vllm_config.kv_transfer_config.is_kv_producer,
    )


def identity_of(vllm_config: Any) -> model.Identity:
    """The model's identity by content, or NotServed."""
    config, load = vllm_config.model_config, vllm_config.load_config
    if load.load_format not in _LOAD_FORMATS:
        raise NotServed(f"weights of load format {load.load_format!r} cannot be keyed by content")
    if config.hf_config_path and config.hf_config_path != config.model:
        raise NotServed(
            f"a configuration of another place than the model (hf_config_path = "
            f"{config.hf_config_path!r}) cannot be keyed by content"
        )
    if config.config_format not in ("auto", "hf"):
        raise NotServed(f"a model of config format {config.config_format!r} is not served")
    if callable(config.hf_overrides):
        raise NotServed("hf_overrides given as a function cannot be keyed by content")
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        raise NotServed("KV scales calculated while running cannot be keyed by content")
    try:
        directory = model_directory(config.model, config.revision, load.download_dir)
        recorded = model.recorded_quantization(directory)
        if (config.quantization or config.quantization_config) and not recorded:
            raise NotServed(
                f"weights quantised on the fly ({config.quantization}) cannot be keyed by content"
            )
        if config.config_format == "auto" and (directory / "params.json").is_file():
            raise NotServed("a model with params.json is served with config_format = 'hf' only")
        if config.trust_remote_code and config.code_revision not in (None, config.revision):
            raise NotServed("code of another revision than the model's cannot be keyed by content")
        return model.identify(
            directory,
            str(config.dtype),
            config.hf_overrides,
            _positions(config),
            with_code=bool(config.trust_remote_code),
        )
    except model.NotKeyable as failure:
        raise NotServed(f"the model cannot be keyed by content: {failure}") from failure


def model_directory(name: str, revision: str | None, download_dir: str | None) -> Path:
    """The folder of the model's files; a name of a hub is looked up in the local cache alone."""
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                local_files_only=True,
                allow_patterns=["config.json"],
            )
        )
    except Exception as failure:  # whatever that library raises: the files are not here
        raise model.NotKeyable(
            f"the files of {name} are not here ({type(failure).__name__})"
        ) from failure


def _positions(config: Any) -> dict[str, Any]:
    """Positional settings that are in no file. Some rotary embeddings depend on the engine's
    length limit."""
    text = str(getattr(config.hf_text_config, "rope_parameters", None) or "") + str(
        getattr(config.hf_text_config, "rope_scaling", None) or ""
    )
    if any(kind in text for kind in _LENGTH_DEPENDENT_ROPE):
        return {"max_model_len": config.max_model_len}
    return {}


def _engine_id(engine_id: str) -> str:
    """An engine id that fits the library's limit."""
    if len(engine_id.encode()) < ENGINE_ID_MAX:
        return engine_id
    return hashlib.sha256(engine_id.encode()).hexdigest()[: ENGINE_ID_MAX - 1]


def _check_parallelism(vllm_config: Any) -> None:
    parallel = vllm_config.parallel_config
    for name in (
        "pipeline_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    ):
        if getattr(parallel, name, 1) != 1:
            raise NotServed(f"{name} = {getattr(parallel, name)} is not served yet")
    if parallel.tensor_parallel_size > RANKS_MAX:
        raise NotServed(
            f"tensor_parallel_size = {parallel.tensor_parallel_size} is more than {RANKS_MAX}"
        )


def _attention_spec(kv_cache_config: Any) -> tuple[Any, tuple[str, ...]]:
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

    groups = kv_cache_config.kv_cache_groups
    if not groups:
        raise NotServed("a model without KV cache is not served")
    if len(groups) > 1:
        kinds = sorted({type(group.kv_cache_spec).__name__ for group in groups})
        raise NotServed(
            f"a model with {len(groups)} KV cache groups ({', '.join(kinds)}) is not served yet"
        )
    spec, names = groups[0].kv_cache_spec, list(groups[0].layer_names)
    specs = [spec]
    if isinstance(spec, UniformTypeKVCacheSpecs):
        specs = list(spec.kv_cache_specs.values())
    if any(type(one) is not FullAttentionSpec for one in specs):
        raise NotServed(f"attention of type {type(specs[0]).__name__} is not served yet")
    first = specs[0]
    if any(one != first for one in specs):
        raise NotServed("a model with attention layers of different shapes is not served yet")
    if first.sliding_window or first.attention_chunk_size or first.non_causal:
        raise NotServed("sliding-window, chunked and non-causal attention are not served yet")
    if first.page_size_padded is not None or first.num_head_slots is not None:
        raise NotServed("padded KV pages are not served yet")
    names.sort(key=extract_layer_index)
    return first, tuple(names)


def _drafts_with_kv(vllm_config: Any) -> bool:
    return getattr(vllm_config.speculative_config, "method", "") not in ("ngram", "suffix")


def _shapes(vllm_config: Any, spec: Any, layers: int) -> tuple[Shape, ...]:
    cache_dtype = vllm_config.cache_config.cache_dtype
    name = str(spec.dtype).removeprefix("torch.") if cache_dtype == "auto" else cache_dtype
    if name not in _KV_DTYPES:
        raise NotServed(f"a KV cache of type {name} is not served yet")
    ranks = vllm_config.parallel_config.tensor_parallel_size
    total = vllm_config.model_config.get_total_num_kv_heads()
    heads = spec.num_kv_heads
    return tuple(
        Shape(
            dtype=_KV_DTYPES[name],
            layers=layers,
            heads=heads,
            head0=rank * heads if total >= ranks else rank * total // ranks,
            dim_k=spec.head_size,
            dim_v=spec.head_size_v or spec.head_size,
            rank=rank,
            ranks_count=ranks,
        )
        for rank in range(ranks)
    )
