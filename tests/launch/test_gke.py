"""The JobSet: what GKE and the JobSet controller read in it."""

import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import T5xLLMError
from t5x_llm.launch import gke
from t5x_llm.launch.job import Gke, Job

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)


def job(**changes):
    fields = dict(name="run", target=Gke("a/b:1"), command=("python", "x"), slice="v6e-256")
    return Job(**(fields | changes))


def pod(made):
    return gke.jobset(made)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def expand(text, variables):
    """Kubernetes' rule: $(NAME) is replaced, $$ is a dollar, all else stays."""
    out, i = "", 0
    while i < len(text):
        if text.startswith("$$", i):
            out, i = out + "$", i + 2
        elif text.startswith("$(", i) and ")" in text[i:]:
            end = text.index(")", i)
            out, i = out + variables.get(text[i + 2 : end], text[i : end + 1]), end + 1
        else:
            out, i = out + text[i], i + 1
    return out


@settings(deadline=None)
@example(["a\x85b\ufeff\u2028", "\x07"], "\x85 ")
@given(st.lists(TEXT, min_size=1, max_size=4), TEXT)
def test_hostile_words_arrive_as_they_are(words, value):
    made = job(command=tuple(words), environment=(("A", value),))
    read = yaml.safe_load(gke.manifest(made))
    assert read == gke.jobset(made)
    container = read["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert [expand(word, {"A": value}) for word in container["command"]] == words
    assert expand(container["env"][0]["value"], {}) == value


def test_slices_and_hosts():
    spec = gke.jobset(job(slices=3))["spec"]["replicatedJobs"][0]
    assert spec["replicas"] == 3 and spec["template"]["spec"]["completions"] == 64
    made = pod(job())
    assert made["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert made["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    single = pod(job(slice="v5e-8"))
    assert single["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}


def test_mistakes_end_the_set_and_preemption_restarts_it():
    spec = gke.jobset(job(restarts=7))["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 7
    inner = spec["replicatedJobs"][0]["template"]["spec"]
    codes = inner["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["operator"] == "NotIn" and {75, 76, 77, 137, 143} <= set(codes["values"])
    assert 2 not in codes["values"] and codes["values"] == sorted(set(codes["values"]))


def test_capacity_secrets_and_identity():
    spot = pod(job(target=Gke("a/b:1", capacity="spot", service_account="trainer")))
    assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert spot["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert spot["serviceAccountName"] == "trainer"
    reserved = pod(job(target=Gke("a/b:1", capacity="reserved", reservation="mine")))
    assert reserved["nodeSelector"]["cloud.google.com/reservation-name"] == "mine"
    made = gke.jobset(job(target=Gke("a/b:1", queue="q"), secrets=(("HF_TOKEN", "hf:token"),)))
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    env = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][
        0
    ]["env"]
    reference = {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert env == [{"name": "HF_TOKEN", "valueFrom": reference}]


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A kubectl that keeps what it was given; fails if told so."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"open({str(tmp_path / 'said')!r}, 'a').write(repr(sys.argv[1:]) + '\\n')\n"
        f"open({str(tmp_path / 'stdin')!r}, 'w').write(sys.stdin.read())\n"
        "status = int(os.environ.get('STATUS', '0'))\n"
        "print('Error from server (Forbidden)' if status else '', file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def command(*words):
    argv = [sys.executable, "-m", "t5x_llm.cli.main", "submit", *words]
    return subprocess.run(argv, capture_output=True, text=True)


def test_the_command(kubectl, monkeypatch):
    flags = ["--gin_file=configs/jobs/gke_2x_v6e_256.gin", "--gin.Job.name='it'"]
    flags += ["--gin.Gke.image='a/b:1'", "--gin.Gke.context='c'"]
    shown = command(*flags, "--dry_run", "--", "python", "a b")
    assert shown.returncode == 0, shown.stderr
    assert not (kubectl / "said").exists()
    done = command(*flags, "--", "python", "a b")
    assert done.returncode == 0, done.stderr
    applied = yaml.safe_load((kubectl / "stdin").read_text())
    assert applied == yaml.safe_load(shown.stdout)
    assert (
        "['--context=c', '--namespace=default', 'apply', '-f', '-']"
        in (kubectl / "said").read_text()
    )
    assert command(*flags, "--delete", "--", "x").returncode == 0
    assert "'delete', 'jobset', 'it'" in (kubectl / "said").read_text()
    monkeypatch.setenv("STATUS", "1")
    refused = command(*flags, "--", "x")
    assert refused.returncode == 2 and "Forbidden" in refused.stderr
    assert "kubectl --context=c --namespace=default delete jobset it" in refused.stderr


def test_without_kubectl(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(T5xLLMError, match="kubectl is not installed"):
        gke.submit(job())
