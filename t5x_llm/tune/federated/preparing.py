"""Prepares the data of parties, in a process of its own: it imports TensorFlow and seqio."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from t5x_llm.config import parse_flags
from t5x_llm.core.errors import T5xLLMError
from t5x_llm.run.config import load_run
from t5x_llm.tune.federated.parties import party_run


def main(argv: Sequence[str]) -> int:
    """Builds the token stores of parties of the run in a gin file.

    Args:
      argv: ``--gin_file=...``, then the numbers of the parties.

    Returns:
      The exit status of the process.
    """
    from t5x_llm.data.prepare import prepare

    gin_file, *numbers = argv
    try:
        run, _ = load_run(parse_flags([gin_file]))
        for number in numbers:
            prepare(party_run(run, int(number)).data, verify=False)
    except T5xLLMError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
