"""MaxText's half of ``plan_maxtext.py``: its own ``train_compile``, what comes out kept in files.

    maxtext/python tests/bench/plan_maxtext_peer.py OUT [MaxText's arguments: key=value ...]

Writes OUT.hlo, the scheduled module, and OUT.json: bytes as the compiler states them, and seconds
of tracing and compiling together, by the clock and of this process's CPU time.
"""

import json
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the described devices are the only TPU
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import maxtext
from maxtext.trainers.pre_train import train_compile


def main(out: str, arguments: list[str]) -> None:
    """Compiles, and writes."""
    original = train_compile.jit_and_compile

    def timed(*args, **kwargs):
        begun, used = time.monotonic(), time.process_time()
        compiled = original(*args, **kwargs)
        stats = compiled.memory_analysis()
        data = {
            "seconds": time.monotonic() - begun,
            "cpu_seconds": time.process_time() - used,
            "arguments": stats.argument_size_in_bytes,
            "fresh": max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0),
            "temporaries": stats.temp_size_in_bytes,
            "code": stats.generated_code_size_in_bytes,
        }
        with open(f"{out}.hlo", "w") as file:
            file.write(compiled.as_text())
        with open(f"{out}.json", "w") as file:
            json.dump(data, file, indent=1)
        return compiled

    train_compile.jit_and_compile = timed
    config = os.path.join(os.path.dirname(maxtext.__file__), "configs", "base.yml")
    train_compile.main(["train_compile", config, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
