"""Training of a run of any kind: the one place that knows which session trains it."""

from __future__ import annotations

from t5x_llm.run.config import Run
from t5x_llm.train.state import TrainState


def train(run: Run, operative_config: str, resume: str = "auto") -> TrainState | None:
    """Trains a run in the way that its configuration asks for.

    Args:
      run: the configuration.
      operative_config: gin text saved with the run.
      resume: ``auto``, ``never``, ``always`` or ``anew``.

    Returns:
      The state as the last step left it; None of a federated run, whose checkpoint has the average.
    """
    if run.federated is not None:
        from t5x_llm.tune.federated import session as federated

        federated.train(run, operative_config, resume)
        return None
    from t5x_llm.run import session

    return session.train(run, operative_config, resume).state
