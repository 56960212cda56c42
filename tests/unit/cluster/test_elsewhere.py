"""Pipelines for Kubernetes and SkyPilot: what they become, that the official schemas take it, that no text of theirs is
more than text, and what is refused. Nothing is run on either.
"""

from __future__ import annotations

import functools
import json
import lzma
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner, Result

from ccr_dist import errors
from ccr_dist.cli import app
from ccr_dist.cluster.decide import Ended, decide
from ccr_dist.cluster.elsewhere.steps import FINAL, gib
from ccr_dist.cluster.elsewhere.text import MOST, name_of, yaml_text
from ccr_dist.cluster.elsewhere.write import TARGETS, rendered
from ccr_dist.cluster.pipeline import load_plan
from ccr_dist.cluster.profile import load_profile
from ccr_dist.resources import PROFILES, folder
from ccr_dist.train.state.run_folder import RunFolder
from tests import jobs

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "elsewhere"
NASTY = """my "own" project's $HOME $(date) `touch x` ${A} #1 %j: {a} *& ü😀"""
HERE = ("kubernetes", "skypilot")


def documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


@functools.cache
def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        json.loads(lzma.decompress((GOLDEN / "schemas" / f"{name}.json.xz").read_bytes()))
    )


def validate(found: Any) -> None:
    """By the schemas, and by the rules of the API servers that no schema has."""
    if found.get("kind") == "JobSet":
        schema("jobset-0.12-jobset").validate(found)
        [replicated] = found["spec"]["replicatedJobs"]
        spec, name = replicated["template"]["spec"], found["metadata"]["name"]
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(f"{name}-{replicated['name']}-0-{spec['completions'] - 1}-abcde") <= 63
        for rule in found["spec"]["failurePolicy"]["rules"]:
            assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        validate(job)
    elif found.get("kind") == "Job":
        for version in ("1.29", "1.37"):
            schema(f"kubernetes-{version}-job").validate(found)
        spec = found["spec"]
        assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"
        assert spec["parallelism"] <= spec["completions"] and spec.get("podReplacementPolicy", "Failed") == "Failed"
        names = {container["name"] for container in spec["template"]["spec"]["containers"]}
        for rule in spec["podFailurePolicy"]["rules"]:
            assert rule["action"] != "FailIndex" or "backoffLimitPerIndex" in spec
            codes = rule.get("onExitCodes", {"values": [1], "containerName": "main"})
            assert codes["values"] == sorted(set(codes["values"])) and 0 not in codes["values"]
            assert codes["containerName"] in names
    else:
        schema("skypilot-0.14-task").validate(found)
        schema("skypilot-0.14-resources").validate(found["resources"])


@pytest.mark.parametrize("to", HERE)
def test_what_a_pipeline_becomes(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan, site = load_plan(GOLDEN / "pipeline.yaml"), load_profile(GOLDEN / "site.yaml")
    files, notes = rendered(plan, site, to=to, named="site.yaml")
    assert files == {path.name: path.read_text(encoding="utf-8") for path in (GOLDEN / to).iterdir()}
    assert any("not used on skypilot" in note for note in notes) == (to == "skypilot")
    for name, text in files.items():
        for found in documents(text) if name.endswith(".yaml") else []:
            if list(found) != ["name"]:  # the header of a SkyPilot pipeline
                validate(found)


@pytest.mark.parametrize("to", HERE)
def test_the_shipped_pipeline_by_the_shipped_profile(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = load_plan(folder("configs") / "pipelines" / "emoji14.yaml")
    files, _ = rendered(plan, load_profile(PROFILES.find(to)), to=to, named=to)
    steps = [name for name in files if name[0].isdigit()]
    assert len(steps) == len(plan.jobs)
    for name in steps:
        validate(*documents(files[name]))


@pytest.mark.parametrize("to", HERE)
def test_the_schemas_refuse_what_is_wrong(to: str) -> None:
    """They are cut down: that they still look."""
    for path in (GOLDEN / to).glob("0*.yaml"):
        found = documents(path.read_text(encoding="utf-8"))[0]
        broken: list[tuple[Any, str, Any]] = [(found, "kinds", "x")]
        if to == "kubernetes":
            inner = found["spec"]
            inner = inner["replicatedJobs"][0]["template"]["spec"] if found["kind"] == "JobSet" else inner
            pod = inner["template"]["spec"]
            broken += [(inner, "completions", "4"), (pod, "terminationGrace", 3), (pod["containers"][0], "name", None)]
            broken += [(pod["containers"][0], "command", "python")]
        else:
            broken += [(found, "num_nodes", "4"), (found["resources"], "gpus", 3), (found["envs"], "A-B", "c")]
        for where, key, value in broken:
            before = dict(where)
            where[key] = value
            with pytest.raises(jsonschema.ValidationError):
                validate(found)
            where.clear()
            where.update(before)
        validate(found)


def expanded(text: str, values: dict[str, str]) -> str:
    """What Kubernetes makes of a container's word: `$$` is a dollar sign, `$(NAME)` a variable if there is one."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda match: "$" if match[0] == "$$" else values.get(match[1], match[0]),
        text,
    )


def nasty(tmp_path: Path) -> tuple[Any, Any]:
    document = {
        "name": "P.x",
        "values": {"text": NASTY},
        "steps": {
            "a": {"command": "report x --title '$text' --out r"},
            "t": {"command": "report 1e3 --title '$text' --out s", "nodes": 2, "gpus": 1, "kind": "evaluate"},
        },
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document))
    common = {"folder": f"/data/{NASTY.replace(':', '')}"}
    site = {
        "python": "/my env/$(touch x)/python",
        "environment": {"A": NASTY, "B": "y", "C": "1e3", "D": "0o7", "E": "", "F": "~"},
        "kubernetes": {**common, "image": NASTY, "volumes": [{"claim": "c", "mount": "/data"}], "gpu": "g/g"},
        "skypilot": {**common, "accelerator": "H100"},
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    return load_plan(tmp_path / "p.yaml"), load_profile(tmp_path / "site.yaml")


def test_no_text_is_more_than_text_to_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan, site = nasty(tmp_path)
    files, _ = rendered(plan, site, to="kubernetes", named="site.yaml")
    [report], [training] = documents(files["01-a.yaml"]), documents(files["02-t.yaml"])
    validate(report)
    validate(training)
    [container] = report["spec"]["template"]["spec"]["containers"]
    words = [expanded(word, {"date": "EXPANDED", "A": "EXPANDED"}) for word in container["command"]]
    assert words == [site.python, "-m", "ccr_dist.cluster.rank", "report", "x", "--title", NASTY, "--out", "r"]
    assert (container["image"], container["workingDir"]) == (NASTY, f"/data/{NASTY.replace(':', '')}")
    values = {each["name"]: expanded(each["value"], {"date": "EXPANDED"}) for each in container["env"]}
    assert {name: values[name] for name in site.environment} == site.environment
    [rank] = training["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    words = [expanded(word, {"JOB_COMPLETION_INDEX": "1", "date": "EXPANDED"}) for word in rank["command"]]
    assert words[words.index("--machine_rank") + 1] == "1" and words[-7:-3] == ["1e3", "--title", NASTY, "--out"]
    assert not Path("x").exists()


def test_no_text_is_more_than_text_to_the_shell_of_skypilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan, site = nasty(tmp_path)
    files, _ = rendered(plan, site, to="skypilot", named="site.yaml")
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$CCR_ATTEMPT" "$PWD" "$@"\n')
    python.chmod(0o755)
    work = tmp_path / site.skypilot.folder.removeprefix("/data/")
    work.mkdir()
    said = []
    for name in ("01-a.yaml", "02-t.yaml"):
        [task] = documents(files[name])
        validate(task)
        assert {key: task["envs"][key] for key in site.environment} == site.environment
        script = task["run"].replace(site.python, str(python)).replace("'/data/my ", f"'{tmp_path}/my ")
        own = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_TASK_ID": "sky.1_a"}
        done = subprocess.run(["bash", "-eu", "-c", script], env=own, capture_output=True, text=True, check=True)
        said.append(done.stdout.split("\0")[:-1])
    assert said[0] == ["", str(work), "-m", "ccr_dist.cluster.rank", *("report", "x", "--title", NASTY, "--out", "r")]
    options = dict(zip(said[1][4:-2:2], said[1][5:-2:2], strict=False))
    assert options["--machine_rank"] == "1" and options["--main_process_ip"] == "10.0.0.1"
    assert re.fullmatch(r"sky-1_a\.\d+", said[1][0])
    assert said[1][-6:] == [
        "--title",
        NASTY,
        "--out",
        "s",
        "--world",
        "2",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["p.yaml", "site.yaml", "python", work.name])


def test_all_readers_of_yaml_take_text_for_text() -> None:
    odd = [
        "y",
        "On",
        "NULL",
        "1e3",
        "0o7",
        "0x1",
        "1_0",
        "12:30",
        "~",
        "",
        ".inf",
        "=",
        "<<",
        "- a",
        "a: b",
        "a #b",
        "!x",
    ]
    for word in odd:
        assert yaml_text({"a": word}) == f"a: {json.dumps(word)}\n"
    for word in [*odd, NASTY, "two\nlines\n", " lead\n", "tab\t", "x" * 500, "\u00a0", "\ufeff"]:
        assert yaml.safe_load(yaml_text({"a": [word]})) == {"a": [word]}


def test_names_are_what_kubernetes_takes_and_never_the_same() -> None:
    pairs = [("a", "b"), ("A", "b"), ("a", "B"), ("a.b", "c"), ("a_b", "c"), ("1", "2"), ("x", "y-"), ("p-1", "2")]
    pairs += [("x" * 60, "y"), ("x" * 60, "z"), ("x" * 37 + "-", "z" * 9)]
    pairs += [("a", "b-c"), ("a-b", "c"), ("a-b", "c-d"), ("a", "b-c-d"), ("a-b-c", "d")]
    names = [name_of(*pair) for pair in pairs]
    pairs.append(("a", names[pairs.index(("a-b", "c"))].removeprefix("a-")))  # spelt like a name with a digest
    pairs.append(("a", "b-nodes-0"))  # like the job that the JobSet of `a` and `b` makes
    names = [*(name_of(*pair) for pair in pairs), f"{names[0]}-nodes-0"]
    assert name_of("a", "b-c") == "a-b-c"
    assert len(set(names)) == len(names) and names[0] == "a-b"
    assert all(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= MOST for name in names)


def test_every_exit_code_has_its_meaning_there() -> None:
    """What SLURM's table gives up is final here, too; what it tries again is not, but for three with a reason."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CcrError)]
    given_up = {kind.exit_code for kind in kinds if decide(Ended(kind.exit_code)).action == "fail"}
    own = {errors.NonFiniteError.exit_code, errors.MismatchError.exit_code, errors.SupersededError.exit_code}
    assert set(FINAL) == given_up | own
    assert {kind.exit_code for kind in kinds} - set(FINAL) == {1, 5, 6, 9}
    assert not {errors.DONE, errors.STOPPED, 137, 143} & set(FINAL)


def test_the_workers_of_an_indexed_job_do_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of the container, in this process."""
    monkeypatch.chdir(tmp_path)
    dataset = jobs.captions(tmp_path / "data", rows=(2, 1, 3))
    command = shlex.join(jobs.shouting(Path("data"), "--column", "caption.xx.shout", "--quiet", "--no-wait"))
    Path("p.yaml").write_text(yaml.safe_dump({"name": "p", "steps": {"a": {"command": command, "tasks": 2}}}))
    Path("site.yaml").write_text(yaml.safe_dump({"kubernetes": KUBERNETES}))
    files, _ = rendered(load_plan("p.yaml"), load_profile("./site.yaml"), to="kubernetes", named="site.yaml")
    [job] = documents(files["01-a.yaml"])
    python, _, module, *words = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert (python, module) == ("python", "ccr_dist.cluster.rank")
    missing = []
    for index in range(job["spec"]["completions"]):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        missing.append(dataset.column("caption.xx.shout").missing())
    assert missing == [[1], []]


@pytest.mark.parametrize(
    ("first", "later"), [("pets-train.0", "pets-train.1"), ("sky-1_a.1764500000", "sky-1_a.1764500600")]
)
def test_a_restart_takes_over_a_run_that_a_lost_node_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, later: str
) -> None:
    """By attempts as the files name them: see test_what_a_pipeline_becomes and the shell of SkyPilot."""
    held, next_one = RunFolder(tmp_path), RunFolder(tmp_path)
    monkeypatch.setenv("CCR_ATTEMPT", first)
    held.lock()
    with pytest.raises(errors.HeldError, match="another process is training this run"):
        next_one.lock()
    monkeypatch.setenv("CCR_ATTEMPT", later)
    next_one.lock()
    next_one.require_held()
    with pytest.raises(errors.SupersededError):
        held.require_held()


def test_memory_in_gib() -> None:
    assert [gib(text) for text in ("400G", "1500", "1M", "1T", "1024K", "2048")] == [400, 2, 1, 1024, 1, 2]
    assert [gib(text) for text in (None, "0", "0G")] == [0, 0, 0]


@pytest.mark.parametrize("to", HERE)
def test_memory_that_means_all_of_a_node_is_no_limit_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit(tmp_path, "--to", to, site=BOTH, memory="0").exit_code == 0
    text = (Path("runs/p") / to / "01-train.yaml").read_text()
    assert not re.search(r"memory: [\"']?0", text)


@pytest.mark.parametrize("to", HERE)
def test_secrets_in_plain_text_are_named_and_not_in_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    harmless = {"TOKENIZERS_PARALLELISM": "true", "SSL_CERT_FILE": "/etc/certificates", "HF_HOME": "/data/huggingface"}
    site = {**BOTH, "environment": {**harmless, "HF_TOKEN": "hf_abcdefgh"}}
    server = "describe data --engine openai --model m --prompt views --column caption.x base_url=http://u:secret@h/v1"
    Path("p.yaml").write_text(yaml.safe_dump({"name": "p", "steps": {"s": {"command": server}}}))
    Path("site.yaml").write_text(yaml.safe_dump(site))
    files, notes = rendered(load_plan("p.yaml"), load_profile("./site.yaml"), to=to, named="site.yaml")
    said = [note for note in notes if "in plain text" in note]
    assert len(said) == 2 and said[0].startswith("environment.HF_TOKEN of") and "p.yaml:" in said[1]
    assert "secret" not in files["README.md"] and "http://***@h/v1" in files["README.md"]


def submit(tmp_path: Path, *words: str, site: dict[str, Any] | None = None, **step: Any) -> Result:
    whole = {"name": "p", "folder": "runs", "steps": {"train": {"command": "train d.yaml", "gpus": 1, **step}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(whole))
    (tmp_path / "d.yaml").write_text(f"base: {ROOT}/configs/demo/dasd.yaml\n")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site or {}))
    return CliRunner().invoke(app, ["submit", "p.yaml", "--profile", "site.yaml", *words])


VOLUMES = [{"claim": "c", "mount": "/d"}]
KUBERNETES: dict[str, Any] = {"image": "i", "folder": "/d/p", "volumes": VOLUMES, "gpu": "nvidia.com/gpu"}
SKYPILOT: dict[str, Any] = {"folder": "/d/p", "accelerator": "H100"}
BOTH = {"kubernetes": KUBERNETES, "skypilot": SKYPILOT}


@pytest.mark.parametrize("to", HERE)
def test_files_are_written_once_and_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = submit(tmp_path, "--to", to, site=BOTH)
    assert done.exit_code == 0 and "nothing was started" in done.output, done.output
    made = Path("runs/p") / to
    assert {path.name for path in made.iterdir()} >= {"01-train.yaml", "README.md"}
    again = submit(tmp_path, "--to", to, site=BOTH)
    assert again.exit_code == 2 and f"{made}: not empty, and nothing there is overwritten" in again.output
    other = submit(tmp_path, "--to", to, "--out", "new/there", "--dry-run", site=BOTH)
    assert other.exit_code == 0
    assert (made / "01-train.yaml").read_text() == Path("new/there/01-train.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "site", "step", "message"),
    [
        (["--to", "kubernets"], BOTH, {}, "--to 'kubernets': did you mean 'kubernetes'? expected one of slurm"),
        (["--to", "sky"], BOTH, {}, "did you mean 'skypilot'?"),
        (["--to", "nomad"], BOTH, {}, "--to 'nomad': expected one of slurm, kubernetes, skypilot"),
        (["--to", "kubernetes"], {}, {}, "profile site.yaml: no section `kubernetes`"),
        (["--to", "skypilot"], {}, {}, "profile site.yaml: no section `skypilot`"),
        (["--to", "kubernetes"], {"kubernetes": {**KUBERNETES, "image": ""}}, {}, "kubernetes.image"),
        (["--to", "kubernetes"], {"kubernetes": {"folder": "/d"}}, {}, "'kubernetes.image' is missing"),
        (["--to", "kubernetes"], {"kubernetes": {**KUBERNETES, "gpu": None}}, {}, "set kubernetes.gpu, such as nvidia"),
        (["--to", "skypilot"], {"skypilot": {"folder": "/d"}}, {}, "set skypilot.accelerator, such as H100"),
        (["--to", "kubernetes"], BOTH, {"gpus": 0}, "write gpus: N, or ranks: N"),
        (["--to", "skypilot"], BOTH, {"gpus": 0}, "write gpus: N, or ranks: N"),
        (["--to", "kubernetes"], BOTH, {"nodes": "2-4"}, "steps.train.nodes=2"),
        (["--to", "kubernetes"], {"kubernetes": {**KUBERNETES, "folder": "/x"}}, {}, "/x is on none of the volumes"),
        (["--to", "kubernetes"], BOTH, {"command": "trian d.yaml"}, "did you mean 'train'"),
        (["--to", "kubernetes"], BOTH, {"launch": "dpd"}, "did you mean 'ddp'"),
        (["--out", "x"], {}, {}, "--out x: with --to kubernetes or skypilot only"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    site: dict[str, Any],
    step: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = submit(tmp_path, *words, site=site, **step)
    assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.yaml", "p.yaml", "site.yaml"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("kubernetes", "image", "a\nb"),
        ("kubernetes", "folder", "relative"),
        ("kubernetes", "folder", "/d/../etc"),
        ("kubernetes", "volumes", []),
        ("kubernetes", "volumes", [{"claim": "A_b", "mount": "/d"}]),
        ("kubernetes", "volumes", [{"claim": "a", "mount": "/d"}, {"claim": "b", "mount": "/d/"}]),
        ("kubernetes", "volumes", [{"claim": "a", "mount": "/d", "read_only": True}]),
        ("kubernetes", "volumes", [{"claim": "a", "mount": "/d"}, {"claim": "b", "mount": "/dev/shm"}]),
        ("kubernetes", "namespace", "a.b"),
        ("kubernetes", "namespace", "a\n"),
        ("kubernetes", "queue", "a b"),
        ("kubernetes", "gpu", "nvidia.com/gpu: 1"),
        ("kubernetes", "node_selector", {"a b": "c"}),
        ("kubernetes", "tolerations", [{"key": "a", "operator": "Equal"}]),
        ("kubernetes", "secrets", ["HF_TOKEN=hf_x"]),
        ("kubernetes", "shared_memory", "16 GB"),
        ("kubernetes", "shared_memory", "16ki"),
        ("kubernetes", "gpu", "gpu"),
        ("kubernetes", "gpu", "nvidia..com/gpu"),
        ("kubernetes", "priority", "a..b"),
        ("kubernetes", "pull_secrets", ["a.-b"]),
        ("kubernetes", "port", 80),
        ("kubernetes", "imgae", "x"),
        ("skypilot", "accelerator", "H100:8"),
        ("skypilot", "secrets", ["HF-TOKEN"]),
        ("skypilot", "setup", ["a\nb"]),
        ("skypilot", "volumes", {"data": "x"}),
    ],
)
def test_profiles_that_would_say_more_than_they_seem_to(tmp_path: Path, section: str, key: str, value: Any) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({section: {**BOTH[section], key: value}}))
    with pytest.raises(errors.ConfigError, match=rf"site\.yaml:\d+: (unknown key ')?{section}"):
        load_profile(path)


@pytest.mark.parametrize("name", ["CCR_ATTEMPT", "CCR_STOP_FILE", "RUN", "RANK", "PYTHON", "JOB_COMPLETION_INDEX"])
def test_variables_that_the_product_sets_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "site.yaml"
    for values in ({"environment": {"HF_HOME": "/data", name: "1"}}, {"skypilot": {**SKYPILOT, "secrets": [name]}}):
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(errors.ConfigError, match=rf"site\.yaml:\d+: .*{name} is set by .* leave it out"):
            load_profile(path)
    path.write_text("environment: {CCR_DIST_CACHE: /data/cache, CCR_TRACEBACK: '1', OMP_NUM_THREADS: '4'}")
    assert len(load_profile(path).environment) == 3


def test_inputs_that_are_missing_here_may_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = submit(tmp_path, "--to", "kubernetes", site=BOTH)
    said = " ".join(done.output.split())
    assert done.exit_code == 0 and said.count("on this machine, data/emoji14/train: there is no dataset") == 1
    assert set(TARGETS) - set(HERE) == {"slurm"}
