"""The gate of every conversion: our logits against the original's on a long prompt.

Prompts of three or four tokens miss faults in rotary embeddings and masks that show on one of
some 500 tokens, so the long prompt decides and a short one is reported beside it. Where a window or
a rotation takes effect only beyond 512 tokens, the long prompt goes beyond that too if the model is
small enough; where it is not, the report says what was not compared.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ParityError
from t5x_llm.core.paths import as_path, write_json
from t5x_llm.hf.reference import Logits

if TYPE_CHECKING:
    from t5x_llm.models.family import Family
    from t5x_llm.nn.adapters.config import Adapter

LONG, SHORT, BEYOND = 512, 8, 64
THRESHOLD = 1e-4
_ROWS = 64
# Bounds on a longer prompt: parameters times tokens, what 512 tokens of 8 billion parameters take;
# bytes of one layer's attention logits, and of the prompt's logits.
_MOST_WORK, _MOST_BYTES = 4e12, 4e9


@dataclasses.dataclass(frozen=True)
class PromptParity:
    """One prompt's comparison over all its positions.

    Attributes:
      tokens: length of the prompt.
      max_abs: largest difference of a logit.
      mean_abs: mean difference of a logit.
      scale: largest logit of the reference, in absolute value.
      relative: max_abs / scale; this is what the threshold bounds.
      kl_mean: mean over positions of KL(reference || ours), nats per token.
      kl_max: its largest value.
      top1: share of positions whose likeliest token is the same.
    """

    tokens: int
    max_abs: float
    mean_abs: float
    scale: float
    relative: float
    kl_mean: float
    kl_max: float
    top1: float


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """Outcome of a check; ``write`` puts it beside the weights.

    Attributes:
      passed: every prompt's ``relative`` is within ``threshold``; False where none was compared.
      threshold: bound on ``relative``.
      reference: what the numbers were compared with.
      dtype: dtype of the weights in the files; the reference computes in float32, we in float64
        where the device can.
      prompts: by name, 'long' and 'short'; 'source long' and 'source short' compare an import
        before it was written. Empty if nothing here could compute the model and the user said that
        it should be written all the same.
      notes: what a reader should know, e.g. that the model's length cut the prompt.
    """

    passed: bool
    threshold: float
    reference: str
    dtype: str
    prompts: dict[str, PromptParity]
    notes: tuple[str, ...] = ()

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Writes parity.json."""
        write_json(as_path(directory) / "parity.json", dataclasses.asdict(self))

    def noted(self, notes: tuple[str, ...]) -> ParityReport:
        """Returns the report with more notes."""
        return dataclasses.replace(self, notes=self.notes + notes)

    def raise_if_failed(self, subject: str) -> None:
        """Raises ParityError with the figures unless the check passed, or there was none."""
        if self.passed or not self.prompts:
            return
        worst = max(self.prompts.values(), key=lambda p: _nan_last(p.relative))
        raise ParityError(
            f"{subject}: logits differ from {self.reference} by {worst.max_abs:.3g} at a scale of "
            f"{worst.scale:.3g} ({worst.relative:.3g} relative, allowed {self.threshold:g}) on a "
            f"prompt of {worst.tokens} tokens; top-1 agreement {worst.top1:.1%}. "
            "Nothing was written."
        )

    def summary(self) -> str:
        """One line for people."""
        if not self.prompts:
            return " ".join(self.notes)
        worst = max(self.prompts.values(), key=lambda p: _nan_last(p.max_abs))
        return f"logits within {worst.max_abs:.1e} of {self.reference}"


def unproved(reason: str, dtype: str) -> ParityReport:
    """The report on a model that nothing here can compute."""
    note = f"Weights read back bit for bit; logits not compared. {reason}"
    return ParityReport(False, THRESHOLD, "none", dtype, {}, (note,))


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value


def compare(ours: np.ndarray, theirs: np.ndarray) -> PromptParity:
    """Compares logits [T, V] of one prompt."""
    if ours.shape != theirs.shape:
        raise ParityError(f"Logits of shape {ours.shape} against {theirs.shape} of the reference.")
    largest, total, scale, kl, agree = [], [], [], [], []
    for first in range(0, len(ours), _ROWS):  # in float64, so not all rows at once
        a, b = (np.asarray(x[first : first + _ROWS], np.float64) for x in (ours, theirs))
        difference = np.abs(a - b)  # NaN where either is: no such report passes
        largest.append(difference.max())
        total.append(difference.sum())
        scale.append(np.abs(b).max())
        with np.errstate(invalid="ignore"):
            log_p, log_q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (b, a))
            kl.append(np.sum(np.exp(log_p) * (log_p - log_q), -1))
        agree.append(a.argmax(-1) == b.argmax(-1))
    divergence, max_abs, top = np.concatenate(kl), float(np.max(largest)), float(np.max(scale))
    return PromptParity(
        tokens=len(ours),
        max_abs=max_abs,
        mean_abs=float(np.sum(total)) / ours.size,
        scale=top,
        relative=max_abs / max(top, 1e-6),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        top1=float(np.mean(np.concatenate(agree))),
    )


def our_logits(family: Family, params: Mapping[str, Any], adapter: Adapter | None = None) -> Logits:
    """Our model on its float32 weights: tokens [T] to float32 logits [T, V].

    Of an encoder-decoder, the encoder reads the tokens and the decoder reads them backwards. With
    an adapter, ``params`` has its parameters too.
    """
    import jax

    from t5x_llm.models.model import Model

    model = Model(family.decoder(), Policy(compute="float32"), adapter=adapter)

    @_exact()
    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        if model.config.kind == "encoder_decoder":
            hidden, _ = model.apply(params, tokens[:, ::-1], encoder_tokens=tokens)
        else:
            hidden, _ = model.apply(params, tokens)
        return model.logits(params, hidden)

    def logits(tokens: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(forward(params, np.asarray(tokens, np.int32)[None])[0], np.float32)

    return logits


def _exact() -> Callable[[Any], Any]:
    """Returns the transformation that compiles our side: float64 on CPU, ``jax.jit`` elsewhere.

    In float64 a difference is the reference's rounding or a fault.
    """
    import jax

    from t5x_llm.core.float64 import in_float64

    return in_float64 if jax.default_backend() == "cpu" else jax.jit


def streamed_logits(
    family: Family,
    read: Callable[[str], np.ndarray],
    adapter: Adapter | None = None,
    trained: Mapping[str, Any] | None = None,
) -> Logits:
    """Computes ``our_logits`` from HF tensors, with one layer in memory at a time.

    An encoder-decoder is held as a whole, and so is a model with virtual tokens.

    Args:
      family: the preset dataclass.
      read: HF name to array.
      adapter: of the model, or None.
      trained: nested dict of the adapter's parameters.
    """
    from t5x_llm.models.decoder import DecoderConfig
    from t5x_llm.models.layerwise import layerwise_logits
    from t5x_llm.models.model import Model
    from t5x_llm.models.weight_map import Assembly, flatten, from_hf
    from t5x_llm.nn.adapters import roots

    config, policy = family.decoder(), Policy(compute="float32")
    abstract = Model(config, policy).abstract_params()
    whole = not isinstance(config, DecoderConfig) or config.kind == "encoder_decoder"
    if whole or (adapter is not None and adapter.virtual):
        base = from_hf(family.weight_map(), abstract, read)
        parts = {roots.BASE: base, roots.ADAPTER: trained or {}}
        return our_logits(family, roots.merge(parts), adapter)
    make, own = Assembly(family.weight_map(), abstract, read).make, flatten(trained or {})

    def load(path: str, repeat: int | None) -> np.ndarray:
        if path not in own:
            return make(path, repeat)
        return np.asarray(own[path] if repeat is None else own[path][repeat])

    return layerwise_logits(config, policy, load, _exact(), adapter)


def count(family: Family) -> int:
    """Number of parameters."""
    from t5x_llm.models.model import Model

    return Model(family.decoder()).parameter_count()["total"]


def max_length(family: Family) -> int | None:
    """The longest prompt the model takes, None if any."""
    from t5x_llm.models.model import Model

    return Model(family.decoder()).max_length


def long_prompt(family: Family) -> tuple[int, tuple[str, ...]]:
    """Tokens of the long prompt of a family, and notes on what lies beyond it.

    It goes beyond every window, and every length from which rotations are others, as far as the
    model's size allows.
    """
    from t5x_llm.nn.rotary_scaling import RotaryScaling

    config = family.decoder()
    ends: dict[int, str] = {}
    for layer in (block.mixer for group in config.groups for block in group.blocks):
        rotary, window = getattr(layer, "rotary", None), getattr(layer, "window", None)
        if window is not None:
            ends[window] = f"a window of {window} tokens"
        if rotary is not None and not isinstance(rotary.scaling, RotaryScaling | None):
            original = rotary.scaling.original_length
            ends[original] = f"the other rotation beyond {original} tokens"
    heads = max(getattr(b.mixer, "n_heads", 1) for g in config.groups for b in g.blocks)
    most, parameters = max_length(family), count(family)
    length, notes = LONG, []
    for end, what in sorted(ends.items()):
        wanted = end + BEYOND
        if wanted <= LONG or (most is not None and end >= most):
            continue
        size = 4 * max(heads * wanted**2, wanted * config.vocab_size)
        if parameters * wanted <= _MOST_WORK and size <= _MOST_BYTES:
            length = wanted
        else:
            notes.append(f"Not compared, as the model is too large for such a prompt: {what}.")
    return length, tuple(notes)


def check_parity(
    ours: Logits,
    reference: tuple[str, Logits],
    *,
    vocab_size: int,
    max_length: int | None,
    dtype: str = "float32",
    threshold: float = THRESHOLD,
    long: tuple[int, tuple[str, ...]] = (LONG, ()),
) -> ParityReport:
    """Runs both sides on a long and a short prompt of random tokens; raises nothing.

    Args:
      ours: tokens [T] to logits [T, V].
      reference: (name, the same function of the original).
      vocab_size: V; tokens are drawn from all of it.
      max_length: longest prompt the model takes, or None.
      dtype: of the weights in the files, for the report.
      threshold: bound on the largest logit difference relative to the largest logit.
      long: tokens of the long prompt, and notes for the report: ``long_prompt``.
    """
    name, theirs = reference
    rng = np.random.default_rng(0)
    prompts, notes = {}, list(long[1])
    for kind, wanted in (("long", long[0]), ("short", SHORT)):
        length = min(wanted, max_length or wanted)
        if length < wanted:
            notes.append(f"The {kind} prompt has {length} tokens: the model takes no more.")
        tokens = rng.integers(0, vocab_size, length).astype(np.int32)
        prompts[kind] = compare(ours(tokens), theirs(tokens))
    passed = all(p.relative <= threshold for p in prompts.values())
    return ParityReport(passed, threshold, name, dtype, prompts, tuple(notes))
