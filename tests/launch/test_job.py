"""Mistakes in a job name their field; what is secret is neither shown nor taken."""

import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.launch.job import Gke, Job, LocalProcesses, QueuedResource

TPU = QueuedResource(project="my-project", zones=("us-east5-a",), bucket="gs://mine/jobs")


def job(**changes):
    fields = dict(name="run", target=TPU, command=("python", "train.py"), slice="v5p-128")
    return Job(**(fields | changes))


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"name": "Run"}, "Job.name"),
        ({"name": "a; rm -rf ~"}, "Job.name"),
        ({"name": "a" * 41}, "Job.name"),
        ({"name": "run\n"}, "Job.name"),
        ({"command": ()}, "Job.command"),
        ({"command": "python train.py"}, "Job.command"),
        ({"command": ("a\0b",)}, "Job.command"),
        ({"slice": "v5p-7"}, "Job.slice"),
        ({"slice": "v7x-64"}, "Job.slice"),
        ({"slices": 0}, "Job.slices"),
        ({"restarts": -1}, "Job.restarts"),
        ({"backoff_seconds": -1}, "Job.backoff_seconds"),
        ({"target": "cloud"}, "Job.target"),
        ({"target": LocalProcesses()}, "Job.slice"),
        ({"environment": (("A B", "1"),)}, "Job.environment"),
        ({"environment": ("A", "1")}, "Job.environment"),
        ({"environment": (("A", "1"), ("A", "2"))}, "Job.environment"),
        ({"secrets": (("TOKEN", "$(id)"),)}, "Job.secrets"),
        ({"secrets": (("TOKEN", "a:b"),), "target": Gke("i"), "environment": (("TOKEN", ""),)},
         "Job.environment"),
    ],
)  # fmt: skip
def test_mistakes_of_the_job(changes, field):
    with pytest.raises(ConfigError) as error:
        job(**changes)
    assert error.value.field == field


@pytest.mark.parametrize(
    "changes",
    [
        {"project": "x; id"},
        {"zones": ()},
        {"zones": ("us-east5",)},
        {"zones": "us-east5-a"},
        {"bucket": "mine"},
        {"bucket": "gs://mine/$(id)"},
        {"capacity": "cheap"},
        {"network": "--impersonate"},
        {"service_account": "a b"},
        {"runtime_version": "-x"},
        {"wait_minutes": 0},
    ],
)
def test_mistakes_of_a_queued_resource(changes):
    fields = dict(project="my-project", zones=("us-east5-a",), bucket="gs://mine/jobs")
    with pytest.raises(ConfigError) as error:
        QueuedResource(**(fields | changes))
    assert error.value.field == f"QueuedResource.{next(iter(changes))}"


@pytest.mark.parametrize(
    "changes", [{"image": "-x"}, {"namespace": "A"}, {"capacity": "reserved"}, {"queue": "a b"},
                {"reservation": "r"}, {"context": "a;b"}, {"grace_seconds": -1}],
)  # fmt: skip
def test_mistakes_of_gke(changes):
    with pytest.raises(ConfigError, match="Gke"):
        Gke(**({"image": "a/b:1"} | changes))


@pytest.mark.parametrize(
    "name, value",
    [
        ("HF_TOKEN", "x"),
        ("MY_API_KEY", "x"),
        ("DB_PASSWORD", "x"),
        ("PLAIN", "hf_" + "a" * 34),
        ("PLAIN", "ghp_" + "a" * 36),
        ("PLAIN", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_secrets_are_refused_and_not_repeated(name, value):
    with pytest.raises(ConfigError, match="Job.secrets") as error:
        job(environment=((name, value),))
    assert len(value) < 2 or value not in str(error.value)
    if name == "PLAIN":
        with pytest.raises(ConfigError, match="Job.secrets") as error:
            job(command=("curl", f"x={value}"))
        assert value not in str(error.value)


TOKEN = "Zx9Kd83Lq0Vb27TmY4"  # of no issuer that we know


@pytest.mark.parametrize(
    "value",
    [
        "postgres://me:hunter2@db.internal/run",
        "https://mirror.example/simple?token=abcdef123456",
        "a3f1" * 10,
        f"{TOKEN}aQ",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
        '{"type": "service_account", "private_key": "x"}',
        "glpat-" + "a" * 20,
    ],
)
def test_values_that_look_secret_are_refused_under_harmless_names(value):
    for changes in ({"environment": (("PLAIN", value),)}, {"command": ("curl", value)}):
        with pytest.raises(ConfigError) as error:
            job(**changes)
        assert value not in str(error.value)


@pytest.mark.parametrize(
    "target", [TPU, LocalProcesses(), Gke("a/b:1")], ids=lambda t: type(t).__name__
)
@pytest.mark.parametrize("pasted", ["hf_" + "a" * 34, f"{TOKEN}aQ", "AKIA" + "A" * 16])
def test_a_secret_pasted_for_its_reference_is_refused(target, pasted):
    place = "" if isinstance(target, LocalProcesses) else "v5p-128"
    with pytest.raises(ConfigError, match="Job.secrets") as error:
        job(target=target, slice=place, secrets=(("HF_TOKEN", pasted),))
    assert pasted not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GIT_COMMIT", "a3f1" * 10),
        ("IMAGE", "repo/train@sha256:" + "a3f1" * 16),
        ("PYTHONPATH", "/usr/local/lib/python3.13/site-packages/MyProject2"),
        ("XLA_FLAGS", "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"),
        ("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=true --megascale_port=8080"),
        ("BUCKET", "gs://my-bucket/runs/LLaMA2-7B-Chinese-2026-11-30"),
        ("URL", "https://storage.googleapis.com/bucket/object?alt=media"),
    ],
)
def test_values_of_every_day_are_not_taken_for_secrets(name, value):
    job(environment=((name, value),))


def test_names_that_only_sound_secret_are_fine():
    job(environment=(("TOKENIZERS_PARALLELISM", "false"), ("KEYBOARD", "us")))


def test_pauses_double_up_to_their_limit():
    pauses = [job(backoff_seconds=10, most_backoff_seconds=60).pause(n) for n in (1, 2, 3, 4, 99)]
    assert pauses == [10, 20, 40, 60, 60]
