"""What a scheduler is asked for: the shipped TPV rules with the recipe of docs/administrators.md, read by Debian's own
sbatch, and the lines with which Galaxy would start the jobs in containers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GALAXY = ROOT / ".plm" / "envs" / "galaxy" / "bin" / "python"
RULES = ROOT / "tools" / "tpv" / "plm_suite.yml"
DOCS = ROOT / "docs" / "administrators.md"
MODEL_TOOLS = (
    "plm_embed",
    "plm_pretrain",
    "plm_distill",
    "plm_finetune",
    "plm_classify_sites",
    "plm_predict",
    "plm_variants",
    "plm_contacts",
    "plm_compare_models",
)
LIGHT_TOOLS = tuple(sorted({path.stem for path in ROOT.glob("tools/plm_*.xml")} - set(MODEL_TOOLS)))

pytestmark = pytest.mark.galaxy


def written(title: str) -> dict[str, Any]:
    """A block of the administrators' page that begins with a comment."""
    block = re.search(rf"```yaml\n# {re.escape(title)}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert block, title
    content: dict[str, Any] = yaml.safe_load(block[1])
    return content


def blocks(key: str) -> list[Any]:
    """What the page's YAML blocks say under a key."""
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)]
    return [block[key] for block in found if key in block]


def recipe(**context: Any) -> dict[str, Any]:
    """The rules that the administrators' page tells to write, with another context."""
    rules = written("your_rules.yml")
    rules["global"]["context"] |= {"plm_checkpoints": "", **context}
    for destination in rules["destinations"].values():
        destination["params"] |= {"docker_enabled": True, "singularity_enabled": True}
        destination["params"]["gpu_memory"] = "{plm_gpu_memory}"
    return rules


def chosen(source: str, value: Any) -> dict[str, Any]:
    return {"source": source, source: value}


STARTER = chosen("builtin", "starter")
LARGE = chosen("table", "facebook/esm2_t36_3B_UR50D")
CLASSES = {
    "starter": (STARTER, (8, 8)),
    "8M": (chosen("table", "facebook/esm2_t6_8M_UR50D"), (8, 8)),
    "35M": (chosen("hub", "facebook/esm2_t12_35M_UR50D"), (12, 12)),
    "150M": (chosen("table", "facebook/esm2_t30_150M_UR50D"), (12, 12)),
    "650M": (chosen("hub", "facebook/esm2_t33_650M_UR50D@main"), (16, 16)),
    "3B": (LARGE, (44, 44)),
    "ProtT5": (chosen("hub", "Rostlab/prot_t5_xl_uniref50"), (24, 24)),
    "ProtT5 half": (chosen("table", "Rostlab/prot_t5_xl_half_uniref50-enc"), (24, 24)),
    "zip of a small model": (chosen("history", {"file": 15_000_000}), (8, 8)),
    "zip of 650M in 32 bit": (chosen("history", {"file": 2_600_000_000}), (24, 24)),
    "unknown": (chosen("table", "our_model"), (16, 16)),
}
CLUSTERS = {"slurm_cli": 0, "kubernetes": 0, "pulsar": 1}  # recipes of the page, and whether they are for GPUs
TUNED = ("lora", "full")
PRESETS = {  # of new models: memory with and without a GPU
    "tiny": (8, 8),
    "small": (8, 8),
    "esm2_8m": (8, 8),
    "esm2_35m": (12, 20),
    "esm2_150m": (12, 24),
    "esm2_650m": (16, 40),
    "proteinlm_200m": (12, 24),
}
STUDENTS: dict[str, tuple[dict[str, Any], int]] = {  # of a teacher of 650 million parameters: memory without a GPU
    "every second layer": ({"source": "take", "student_take": "every 2"}, 52),
    "its first layers": ({"source": "take", "student_take": "1-3"}, 64),
    "starter": ({"source": "builtin"}, 40),
    "35M": ({"source": "preset", "student_preset": "esm2_35m"}, 44),
    "wide": ({"source": "shape", "student_layers": 24, "student_width": 1024, "student_heads": 16}, 52),
    "zip": ({"source": "history", "zip": {"file": 600_000_000}}, 52),
}


def cases() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def case(name: str, tool: str, params: dict[str, Any], **context: Any) -> None:
        stem = tool.split("/")[-2] if "/" in tool else tool
        found[name] = {
            "tool": tool,
            "xml": str(ROOT / "tools" / f"{stem}.xml"),
            "suite": str(RULES),
            "params": params,
            "rules": recipe(**context),
        }

    for gpus in (0, 1):
        for name, (model, _) in CLASSES.items():
            case(f"{name}, gpus {gpus}", "plm_embed", {"model": model}, plm_gpus=gpus)
        for tool in (*MODEL_TOOLS, *LIGHT_TOOLS):
            case(f"{tool}, gpus {gpus}", f"a.shed/repos/o/plm_suite/{tool}/0.1.0", {"model": LARGE}, plm_gpus=gpus)
    models = [{"__index__": n, "name": str(n), "model": STARTER} for n in range(2)]
    case("compare starters", "plm_compare_models", {"models": models, "probe_sets": []})
    models = [models[0], {"__index__": 1, "name": "b", "model": LARGE}]
    case("compare with 3B", "plm_compare_models", {"models": models, "probe_sets": []})
    case("ready embeddings", "plm_predict", {"query": {"kind": "embeddings", "input": {"file": 9}}, "model": LARGE})
    case("proteins", "plm_predict", {"query": {"kind": "proteins", "input": {"file": 9}}, "model": LARGE})
    for tuned in TUNED:
        for gpus in (0, 1):
            for name, (model, _) in CLASSES.items():
                given = {"model": model, "tuning": {"method": tuned}}
                case(f"{name}, {tuned}, gpus {gpus}", "plm_finetune", given, plm_gpus=gpus, plm_small_gpus=gpus)
    for tuned in TUNED:
        case(f"features {tuned}", "plm_finetune", {"model": CLASSES["650M"][0], "tuning": {"method": tuned}})
        (featured,) = [given for given in blocks("params") if "--constraint" in given["nativeSpecification"]]
        found[f"features {tuned}"]["rules"]["destinations"]["gpu"]["params"] |= featured
    case("small on a GPU", "plm_embed", {"model": STARTER}, plm_small_gpus=1)
    for gigabytes in (0.1, 12):
        files = {"input": [{"file": int(gigabytes * 1e9)}], "model": {"source": "none"}}
        case(f"convert {gigabytes} GB", "plm_convert", files)
    for gpus in (0, 1):
        for preset in PRESETS:
            new = {"source": "new", "preset": preset}
            case(f"new {preset}, gpus {gpus}", "plm_pretrain", {"model": new}, plm_gpus=gpus)
    for name, (student, _) in STUDENTS.items():
        distilled = {"model": CLASSES["650M"][0], "job": {"what": "train", "student": student}}
        case(f"student {name}", "plm_distill", distilled, plm_gpus=0)
    for method in ("lora", "full", "compare"):
        tuning = {"method": method} | ({"methods": ["lora", "full"]} if method == "compare" else {})
        for largest in (0, 16):
            given = {"model": CLASSES["650M"][0], "tuning": tuning}
            case(f"{method}, largest GPU {largest}", "plm_finetune", given, plm_largest_gpu=largest)
    student = {"what": "train", "student": chosen("zip", {"file": 70_000_000})}
    case("teacher and student", "plm_distill", {"model": CLASSES["650M"][0], "job": student})
    case("named size", "plm_embed", {"model": CLASSES["unknown"][0]}, plm_model_sizes={"our_model": 8})
    for gpus in (1, 4):
        case(f"parallel {gpus}", "plm_pretrain", {"model": LARGE}, plm_parallel_gpus=gpus)
    found["parallel 4"]["rules"]["destinations"]["gpu"] |= {"max_accepted_gpus": 4, "max_accepted_mem": 256}
    case("parallel, small", "plm_pretrain", {"model": STARTER}, plm_parallel_gpus=4, plm_small_gpus=1)
    case("parallel, fine-tuning", "plm_finetune", {"model": LARGE}, plm_parallel_gpus=4)
    case("many cores", "plm_embed", {"model": LARGE}, plm_gpu_job_cores=16)
    for kind, gpus in CLUSTERS.items():
        rules = written(f"{kind}_rules.yml")
        rules["global"] = {"context": {"plm_gpus": gpus}}
        for states in ([], ["resubmitted"], ["resubmitted"] * 3):
            name = f"{kind} {len(states)}"
            case(name, "plm_embed", {"model": CLASSES["650M"][0]})
            found[name] |= {"rules": rules, "states": states}
    variables = {"PLM_ALLOW_HUB": "no", "PLM_MAX_UNPACKED_GIB": 20}
    for tool in ("plm_finetune", "plm_train_classifier"):
        case(f"folder {tool}", tool, {"model": STARTER}, plm_checkpoints="/shared/plm", plm_environment=variables)
    case("own volumes", "plm_finetune", {"model": STARTER}, plm_checkpoints="/shared/plm")
    own = "$defaults,/data/models:ro,/shared/plm:rw"
    found["own volumes"]["rules"]["destinations"]["cpu"]["params"] |= {
        "docker_volumes": own,
        "singularity_volumes": own,
    }
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe answers to all cases and files."""
    if not GALAXY.exists():
        pytest.fail("Galaxy is not installed: scripts/galaxy install")
    folder = tmp_path_factory.mktemp("rules")
    titles = ["your_rules.yml", *(f"{kind}_rules.yml" for kind in CLUSTERS)]
    for title in titles:
        (folder / title).write_text(yaml.safe_dump(written(title)))
    (folder / "bad.yml").write_text("tools: {a: {inherits: plm_suite_nothing}}\n")
    files = [[str(RULES), *(str(folder / title) for title in names)] for names in ([], titles, ["bad.yml"])]
    probe = Path(__file__).with_name("scheduling_probe.py")
    done = subprocess.run(
        [GALAXY, probe],
        input=json.dumps({"cases": list(cases().values()), "lint": files}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def answers(asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(zip(cases(), asked["cases"], strict=True))


def memory(answer: dict[str, Any]) -> int:
    found = re.search(r"--mem=(\d+)(?: |$)", answer["native"])
    assert found, answer["native"]
    return int(found[1]) // 1024


@pytest.mark.parametrize("name", CLASSES)
def test_memory_and_gpu_go_by_the_model(answers: dict[str, dict[str, Any]], name: str) -> None:
    small = CLASSES[name][1] == (8, 8)
    on_gpu, on_cpu = answers[f"{name}, gpus 1"], answers[f"{name}, gpus 0"]
    assert (memory(on_gpu), memory(on_cpu)) == CLASSES[name][1]
    assert on_gpu["id"] == ("cpu" if small else "gpu") and on_cpu["id"] == "cpu"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_model_counts_by_its_preset(answers: dict[str, dict[str, Any]], preset: str) -> None:
    on_gpu, on_cpu = answers[f"new {preset}, gpus 1"], answers[f"new {preset}, gpus 0"]
    assert (memory(on_gpu), memory(on_cpu)) == PRESETS[preset]
    assert on_gpu["id"] == ("cpu" if PRESETS[preset] == (8, 8) else "gpu") and on_cpu["id"] == "cpu"


def test_the_presets_are_those_of_the_form() -> None:
    form = (ROOT / "tools" / "plm_pretrain.xml").read_text()
    values = re.findall(r'<option value="(\w+)"', form.split('"--preset"')[1])
    assert values[: len(PRESETS)] == list(PRESETS)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_counts_by_its_shape(answers: dict[str, dict[str, Any]], name: str) -> None:
    assert memory(answers[f"student {name}"]) == STUDENTS[name][1]


def test_gpu_memory_goes_by_model_and_method(answers: dict[str, dict[str, Any]]) -> None:
    needs = {name: int(answers[name]["gpu_memory"]) for name in answers if answers[name]["id"] == "gpu"}
    assert needs["lora, largest GPU 0"] == 16 and needs["full, largest GPU 0"] == needs["compare, largest GPU 0"] == 24
    assert needs["650M, gpus 1"] == 8 and needs["3B, gpus 1"] == 20 and needs["new esm2_650m, gpus 1"] == 24
    without = {answer["gpu_memory"] for answer in answers.values() if answer["id"] == "cpu"}
    assert without == {"0"}


def test_nodes_can_be_chosen_by_the_memory_of_their_gpus(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["features lora"]["native"].endswith(" --constraint=gpu16|gpu24|gpu80")
    assert answers["features full"]["native"].endswith(" --constraint=gpu24|gpu80")


def test_a_job_that_no_gpu_holds_runs_on_cores(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["lora, largest GPU 16"]["id"] == "gpu"
    for method in ("full", "compare"):
        answer = answers[f"{method}, largest GPU 16"]
        assert answer["id"] == "cpu" and memory(answer) == 40 and "--gres" not in answer["native"]


def test_no_gpu_where_nothing_runs_on_it(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["compare starters"]["id"] == "cpu"
    assert answers["compare with 3B"]["id"] == "gpu" and memory(answers["compare with 3B"]) == 44
    assert answers["ready embeddings"]["id"] == "cpu" and memory(answers["ready embeddings"]) == 8
    assert answers["proteins"]["id"] == "gpu"
    for tool in LIGHT_TOOLS:
        assert answers[f"{tool}, gpus 1"]["id"] == "cpu"
    for tool in MODEL_TOOLS:
        assert answers[f"{tool}, gpus 1"]["id"] == "gpu"


def test_a_teacher_and_its_student_are_counted_together(answers: dict[str, dict[str, Any]]) -> None:
    assert memory(answers["teacher and student"]) > memory(answers["650M, gpus 1"])
    assert answers["named size"]["id"] == "cpu" and memory(answers["named size"]) == 8


def test_the_page_says_what_the_rules_ask_for(answers: dict[str, dict[str, Any]]) -> None:
    text = DOCS.read_text()
    labels = {
        "starter, ESM-2 8M": "8M",
        "ESM-2 35M": "35M",
        "ESM-2 150M": "150M",
        "ESM-2 650M, and any of which nothing is known": "650M",
        "ProtT5-XL": "ProtT5",
        "ESM-2 3B": "3B",
    }
    for label, name in labels.items():
        trained = [answers[f"{name}, {tuned}, gpus 1"] for tuned in TUNED]
        reading = answers["small on a GPU" if name == "8M" else f"{name}, gpus 1"]
        gpu = [int(answer["gpu_memory"]) for answer in (reading, *trained)]
        cores = [memory(answers[f"{name}, gpus 0"]), *(memory(answers[f"{name}, {tuned}, gpus 0"]) for tuned in TUNED)]
        row = f"| {label} | {memory(reading)} | {' / '.join(map(str, gpu))} | {' / '.join(map(str, cores))} |"
        assert row in text, row


def test_a_conversion_counts_by_its_files(answers: dict[str, dict[str, Any]]) -> None:
    assert memory(answers["convert 0.1 GB"]) == 16 and memory(answers["convert 12 GB"]) == 60


def test_numbers_are_whole(answers: dict[str, dict[str, Any]]) -> None:
    for name, answer in answers.items():
        assert not re.search(r"\d\.\d", answer["native"]), f"{name}: {answer['native']}"
    assert "--cpus-per-task=16 " in answers["many cores"]["native"]


def sbatch_says(specification: str, folder: Path, script: str = "") -> str:
    """What Debian's sbatch makes of a specification; there is no controller, so it gets no further than reading it."""
    program = shutil.which("sbatch")
    if program is None:
        pytest.skip("NO SBATCH HERE: apt-get install slurm-wlm; nothing is known of what a scheduler accepts")
    settings = folder / "slurm.conf"
    settings.write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nAuthType=auth/none\nMessageTimeout=1\n"
        "GresTypes=gpu\nNodeName=n1 CPUs=16 Gres=gpu:1\nPartitionName=main Nodes=ALL Default=YES\n"
    )
    wrapped = ["--wrap", "true"]
    if script:
        (folder / "job.sh").write_text(script)
        wrapped = [str(folder / "job.sh")]
    command = [program, "--test-only", *specification.split(), *wrapped]
    environment = {"SLURM_CONF": str(settings), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    return done.stdout + done.stderr


def test_sbatch_takes_what_is_asked_for(answers: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert 'Invalid numeric value "8.0"' in sbatch_says("--ntasks=1 --cpus-per-task=8.0 --mem=8192", tmp_path)
    for specification in sorted({answer["native"] for answer in answers.values()}):
        said = sbatch_says(specification, tmp_path)
        assert "Unable to contact slurm controller" in said, f"{specification}: {said}"
        assert "nvalid" not in said and "nrecognized" not in said, f"{specification}: {said}"


def test_sbatch_takes_the_scripts_of_the_command_line_runner(
    answers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    script = answers["slurm_cli 0"]["script"]
    assert "#SBATCH -c 8\n" in script and "#SBATCH --mem 16384\n" in script and "#SBATCH --no-requeue \n" in script
    said = sbatch_says("", tmp_path, script)
    assert "Unable to contact slurm controller" in said and "nrecognized" not in said, said
    broken = sbatch_says("", tmp_path, script.replace("16384", "16384.0x"))
    assert "Invalid --mem specification" in broken, broken


# -- recipes of the page for other clusters --------------------


@pytest.mark.parametrize("kind", CLUSTERS)
def test_recipes_map_jobs(answers: dict[str, dict[str, Any]], kind: str) -> None:
    answer = answers[f"{kind} 0"]
    assert answer["runner"] == {"slurm_cli": "cli", "kubernetes": "k8s", "pulsar": "pulsar"}[kind]
    numbers = [value for name, value in answer["params"].items() if name.startswith(("job_", "requests_", "limits_"))]
    assert not [value for value in numbers if "." in value]


@pytest.mark.parametrize("kind", ["slurm_cli", "kubernetes"])
def test_killed_jobs_are_sent_again_and_mistakes_are_not(answers: dict[str, dict[str, Any]], kind: str) -> None:
    (first,), (last,) = answers[f"{kind} 0"]["resubmit"], answers[f"{kind} 3"]["resubmit"]
    assert first == {
        "walltime_reached": True, "memory_limit_reached": True, "unknown_error": True, "tool_detected_failure": False
    }
    assert not any(last.values()), "it ends at last"


def test_each_time_there_is_more_memory(answers: dict[str, dict[str, Any]]) -> None:
    memories = [int(answers[f"slurm_cli {times}"]["params"]["job_--mem"]) for times in (0, 1, 3)]
    assert memories == [16384, 2 * 16384, 8 * 16384]


def test_what_is_rehearsed_is_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from harness import slurm_trial

    recipe = written("slurm_cli_rules.yml")
    assert slurm_trial.RULES["destinations"]["slurm"]["params"] == recipe["destinations"]["slurm_cli"]["params"]
    assert recipe["tools"]["(.*/plm_suite/)?plm_.*"]["resubmit"] == {"again": slurm_trial.RESUBMIT}


def sources(*names: str) -> str:
    packages = next(GALAXY.parents[1].glob("lib/python3*/site-packages"))
    return "".join(file.read_text() for name in names for file in sorted(packages.glob(name)))


def test_names_for_kubernetes_are_those_of_galaxys_runner(answers: dict[str, dict[str, Any]]) -> None:
    runner = sources("galaxy/jobs/runners/kubernetes.py")
    known = set(re.findall(r"\b(k8s_\w+)=dict\(", runner))
    (block,) = [given for given in blocks("runners") if "k8s" in given]
    assert set(block["k8s"]) - {"load"} <= known and "k8s_node_selector" in known and "k8s_tolerations" in known
    asked = set(re.findall(r'"(\w+)" in job_destination\.params', runner))
    params = set(answers["kubernetes 0"]["params"]) - {"docker_enabled", "docker_container_id_override"}
    assert params == {"requests_cpu", "requests_memory", "limits_cpu", "limits_memory"} and params <= asked
    assert answers["kubernetes 0"]["params"]["requests_memory"] == "16Gi"
    assert "nvidia.com" not in runner, "the page says that it asks for no GPU"
    containers = sources("galaxy/tool_util/deps/containers.py")
    assert "_container_id_override" in containers and "_enabled" in containers


def test_names_for_pulsar_are_those_of_its_client(answers: dict[str, dict[str, Any]]) -> None:
    client = sources("pulsar/client/**/*.py", "pulsar/client/*.py", "galaxy/jobs/runners/pulsar.py")
    for name in answers["pulsar 0"]["params"]:
        assert re.search(rf"[\"']{re.sub('^submit_', '', name)}[\"']", client), name
    assert 'startswith("submit_")' in client or "submit_" in client
    assert "--gres=gpu:1" in answers["pulsar 0"]["params"]["submit_native_specification"]
    (block,) = [given for given in blocks("runners") if "pulsar" in given]
    assert block["pulsar"]["load"].partition(":")[2] in client
    (paths,) = blocks("paths")
    assert {path["action"] for path in paths} <= set(re.findall(r'action_type = "(\w+)"', client))


def test_tpvs_lint_finds_nothing(asked: dict[str, Any]) -> None:
    """In the shipped rules, alone and with each recipe of the page; what inherits nothing is found.

    Its type checker knows neither what stands in ``global: context:``, where sites set it, nor the types of TPV itself;
    and TPV's own idiom ``int(mem * 1024)``, of the recipes, it does not like either.
    """
    shipped, recipes, bad = asked["lint"]
    known = set(yaml.safe_load(RULES.read_text())["global"]["context"])
    unknown = [re.search(r'Name "(\w+)" is not defined', fault) for fault in shipped]
    others = [fault for fault, match in zip(shipped, unknown, strict=True) if not match and "-untyped" not in fault]
    assert {match[1] for match in unknown if match} <= known
    assert not [fault for fault in others if ": note: " not in fault], others
    assert all("T103" in fault for fault in recipes), recipes
    assert len(bad) == 1 and "Linting failed" in bad[0]


@pytest.mark.parametrize("tool", ["plm_finetune", "plm_train_classifier"])
def test_variables_and_folder_reach_jobs_in_containers(answers: dict[str, dict[str, Any]], tool: str) -> None:
    answer = answers[f"folder {tool}"]
    wanted = {"PLM_CHECKPOINT_DIR": "/shared/plm", "PLM_ALLOW_HUB": "no", "PLM_MAX_UNPACKED_GIB": "20"}
    assert answer["env"] == wanted
    for name, value in wanted.items():
        assert f'-e "{name}={value}"' in answer["docker"], name
        assert f'SINGULARITYENV_{name}="{value}"' in answer["singularity"], name
    assert "-v /shared/plm:/shared/plm:rw" in answer["docker"]
    assert re.search(r"-B /shared/plm:/shared/plm(:rw)?(?= )", answer["singularity"])
    for line in (answer["docker"], answer["singularity"]):
        assert "/job" in line and "/tool" in line, "the folders that Galaxy mounts by itself stay"


def test_a_destination_with_volumes_of_its_own_keeps_them(answers: dict[str, dict[str, Any]]) -> None:
    answer = answers["own volumes"]
    assert "-v /data/models:/data/models:ro" in answer["docker"] and "-v /shared/plm:/shared/plm:rw" in answer["docker"]
    assert "-B /data/models:/data/models:ro" in answer["singularity"] and "/shared/plm" in answer["singularity"]


def test_without_a_folder_nothing_is_set(answers: dict[str, dict[str, Any]]) -> None:
    answer = answers["starter, gpus 0"]
    assert answer["env"] == {} and "PLM_" not in answer["docker"] + answer["singularity"]


def test_several_gpus_come_with_the_processes_that_use_them(answers: dict[str, dict[str, Any]]) -> None:
    several, one = answers["parallel 4"], answers["parallel 1"]
    launch = "torchrun --standalone --nproc-per-node 4"
    assert "--gres=gpu:4" in several["native"] and "--cpus-per-task=16 " in several["native"]
    assert memory(several) == 4 * memory(one) and several["env"]["PLM_LAUNCH"] == launch
    for kind in ("docker", "singularity"):
        assert f"PLM_LAUNCH={launch}" in several[kind].replace('"', "")
    for name in ("parallel 1", "parallel, small", "parallel, fine-tuning"):
        assert "--gres=gpu:1" in answers[name]["native"] and "PLM_LAUNCH" not in str(answers[name])
