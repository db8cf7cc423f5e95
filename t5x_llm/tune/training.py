"""Training of a run by the kind that its configuration asks for."""

from __future__ import annotations

from t5x_llm.run.config import Run
from t5x_llm.train.state import TrainState


def train(run: Run, operative_config: str, resume: str = "auto") -> TrainState | None:
    """Trains a run of any kind; see ``run.session.train``.

    Returns:
      The state as the last step left it, or None where parties of ``Run.federated`` have their own.
    """
    if run.federated is not None:
        from t5x_llm.tune.federated import session as federated

        federated.train(run, operative_config, resume)
        return None
    from t5x_llm.run import session

    return session.train(run, operative_config, resume).state
