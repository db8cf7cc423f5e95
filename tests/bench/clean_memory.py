"""Peak memory of a cleaning with deduplication, for inputs of several sizes.

    python tests/bench/clean_memory.py [--megabytes 10 100 1000] [--workers 2]

The command runs as a user runs it; the peak resident memory of each of its processes is read from
/proc until it ends. Shards and partitions are small, so that the smallest input has several.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
SLICES, SLICE = 24, 90
SETTINGS = {
    "Clean.inputs": "(@Input(),)",
    "Input.name": "'bench'",
    "Clean.steps": "(@Normalise(),)",
    "Clean.dedup": "@Dedup()",
    "Dedup.repeats": "@Repeats()",
    "Repeats.unit": "'line'",
    "Dedup.partition_bytes": 1 << 20,
    "Clean.shard_bytes": 2 << 20,
}


def write_input(path, megabytes):
    """Documents of 2 KB pieced together from the shipped speeches, every tenth a near copy."""
    rng = np.random.default_rng(0)
    raw = (ROOT / "data/quickstart/en_sotu.jsonl").read_text(encoding="utf-8")
    text = "".join(json.loads(line)["text"] for line in raw.splitlines())
    before = "x"
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for i, starts in enumerate(rng.integers(0, len(text) - SLICE, (1000, SLICES))):
                made = "\n".join(text[s : s + SLICE] for s in starts.tolist())
                before = f"{before} again" if i % 10 == 9 else made
                file.write(json.dumps({"text": before}) + "\n")


def processes(group):
    """The processes of a group."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getpgid(int(name)) == group:
                    yield int(name)
            except ProcessLookupError:
                continue


def peak_of(pid):
    """Peak resident memory so far, MB."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(x.split()[1]) / 1e3 for x in status.splitlines() if "VmHWM" in x), 0.0)


def measure(megabytes, workers):
    """Peaks in MB by process, seconds, documents kept and read."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        write_input(f"{folder}/in.jsonl", megabytes)
        settings = SETTINGS | {
            "Clean.output": repr(f"{folder}/out"),
            "Input.files": repr(f"{folder}/in.jsonl"),
            "Clean.workers": workers,
        }
        flags = [f"--gin.{name}={value}" for name, value in settings.items()]
        begin, peaks = time.monotonic(), {}
        child = subprocess.Popen(
            [sys.executable, "-m", "t5x_llm.cli.main", "data", "clean", *flags],
            cwd=ROOT,
            start_new_session=True,
        )
        while child.poll() is None:
            for pid in processes(child.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), peak_of(pid))
            time.sleep(0.1)
        if child.returncode:
            sys.exit(child.returncode)
        seconds = time.monotonic() - begin
        counts = json.loads(pathlib.Path(folder, "out/manifest.json").read_text())["sources"]
    return sorted(peaks.values(), reverse=True), seconds, counts["bench"]


def main():
    """Prints a row a size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print("     MB  largest process, MB  all, MB  seconds  documents kept of read", flush=True)
    for megabytes in args.megabytes:
        peaks, seconds, counts = measure(megabytes, args.workers)
        kept, read = (counts[what]["documents"] for what in ("kept", "read"))
        print(
            f"{megabytes:7} {peaks[0]:20.0f} {sum(peaks):8.0f} {seconds:8.0f}  {kept} of {read}",
            flush=True,
        )


if __name__ == "__main__":
    main()
