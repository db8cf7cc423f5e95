"""The one shape legend. Einsums, comments and docstrings use these letters and no others.

B batch, T query positions, S key positions, D model width, N query heads, K key/value heads,
H head size, F feed-forward width, E experts, V vocabulary, L layers, P pipeline stages.
"""

LEGEND = {
    "B": "batch",
    "T": "query positions",
    "S": "key positions",
    "D": "model width",
    "N": "query heads",
    "K": "key/value heads",
    "H": "head size",
    "F": "feed-forward width",
    "E": "experts",
    "V": "vocabulary",
    "L": "layers",
    "P": "pipeline stages",
}
