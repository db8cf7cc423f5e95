"""What lies between layers counts once for each piece of the sequence, or of the features."""

import pytest

from t5x_llm.config import parse_flags
from t5x_llm.plan.describe import planned_mesh
from t5x_llm.plan.estimate import estimate
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run


def activations(n_layers, tensor, cut):
    flags = ["--gin_file=configs/recipes/palm_540b.gin", f"--gin.PaLM.n_layers={n_layers}"]
    flags += [f"--gin.MeshConfig.tensor={tensor}", f"--gin.MeshConfig.sequence_sharded={cut}"]
    run = load_run(parse_flags(flags))[0]
    return estimate(assemble(run, planned_mesh(run)[0])).activations


@pytest.mark.parametrize("tensor", [8, 12])  # which divide the sequence, and the features alone
def test_activations_of_a_sequence_in_pieces(tensor):
    more = {cut: activations(3, tensor, cut) - activations(2, tensor, cut) for cut in (False, True)}
    stream = (2048 // 256) * 2048 * 18432 * 2  # a layer's input in bfloat16
    assert more[False] == pytest.approx(stream, rel=0.01)
    assert more[True] == pytest.approx(stream / tensor, rel=0.01)
