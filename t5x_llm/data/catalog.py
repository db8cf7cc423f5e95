"""The catalogue, which ``prepare`` writes and by which training finds its stores without seqio.

The file ``<store_dir>/<Data.name>.json`` names the tokenizer, and each source's store and resolved
rate.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from etils import epath

from t5x_llm.core.errors import DataError, nearest
from t5x_llm.core.paths import as_path
from t5x_llm.core.units import count
from t5x_llm.data.bins import Order
from t5x_llm.data.blending import Blend, stages
from t5x_llm.data.instruct.encoding import check_dropped
from t5x_llm.data.row_objective import RowObjective, make_row_objective
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.data.store import FORMAT, TokenStore
from t5x_llm.data.stream import Stream
from t5x_llm.text import Tokenizer, load_tokenizer

# What decides only how prepared text is read.
_READING = {
    "Data": ("store_dir", "workers", "packing", "denoising", "bins"),
    "Mixture": ("stages", "replay", "max_epochs"),
    "Source": ("tokens", "epochs", "exhausted", "curriculum"),
}
# Of ``Chat``, what only judges or weighs what was prepared.
_CHAT = ("loss", "prompt_weight", "max_dropped")
_PREPARE = "Run `t5x-llm prepare` with this configuration first."


@dataclasses.dataclass(frozen=True)
class Opened:
    """Everything training needs of the data.

    Attributes:
      tokenizer: the one the stores were built with.
      tokenizer_path: where it was loaded from.
      stores: by source, in the order of the configuration.
      weights: share of each source, of 1.
      languages: language of each source, "" if not given.
      licenses: licence of each source, "" if not given.
      texts: hash of each source's input, wherever its files lie; "" if not known.
    """

    tokenizer: Tokenizer
    tokenizer_path: str
    stores: dict[str, TokenStore]
    weights: dict[str, float]
    languages: dict[str, str]
    licenses: dict[str, str]
    texts: dict[str, str] = dataclasses.field(default_factory=dict)


def described(data: Data) -> dict[str, Any]:
    """Returns the part of the configuration that decides what is built, as JSON-able data."""
    value = json.loads(json.dumps(dataclasses.asdict(data)))
    for name in _READING["Data"]:
        del value[name]
    if value["mixture"]:
        for name in _READING["Mixture"]:
            del value["mixture"][name]
        if value["mixture"]["max_examples"] is None:
            del value["mixture"]["max_examples"]
        for source in value["mixture"]["sources"]:
            for name in (*_READING["Source"], *([] if source["score"] else ["score"])):
                del source[name]
            if not source["classes"]:
                del source["classes"]
            if source["kind"] != "chat":
                del source["format"], source["columns"]
            if source["prompts"] is None:
                del source["prompts"]
    if data.chat is None:
        del value["chat"]
    else:
        for name in _CHAT:
            del value["chat"][name]
        value["chat"]["trained"] = list(data.chat.trained)
        value["chat"]["measured"] = list(data.chat.measured)
    if isinstance(value["tokenizer"], dict) and not value["tokenizer"]["extra_ids"]:
        del value["tokenizer"]["extra_ids"]  # as before there was this field
    return value


def catalog_path(data: Data) -> epath.Path:
    """Returns the path of the catalogue."""
    return as_path(data.store_dir) / f"{data.name}.json"


def read_catalog(data: Data) -> dict[str, Any] | None:
    """Reads the catalogue; None if there is none of this format.

    Raises:
      DataError: the file is not JSON.
    """
    path = catalog_path(data)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as e:
        raise DataError(f"{path}: not JSON ({e}). Delete it and run `t5x-llm prepare`.") from e
    return value if isinstance(value, dict) and value.get("format") == FORMAT else None


def open_stores(data: Data) -> Opened:
    """Opens the tokenizer and the stores that ``prepare`` made for this configuration.

    Raises:
      DataError: they are not there, or were made with another configuration or tokenizer.
    """
    catalog = read_catalog(data)
    if catalog is None:
        others = [p.stem for p in as_path(data.store_dir).glob("*.json") if p.name[0] != "."]
        near = nearest(data.name, others)
        raise DataError(
            f"No prepared data called {data.name!r} in {data.store_dir}. "
            + (f"Did you mean Data.name = {near!r}? " if near else "")
            + _PREPARE
        )
    for key, wanted in described(data).items():
        built = catalog["config"].get(key)
        if built != wanted:
            raise DataError(
                f"The data in {data.store_dir} was prepared with another configuration: "
                f"Data.{key} was {_short(built)}, now it is {_short(wanted)}. {_PREPARE}"
            )
    where = catalog["tokenizer"]
    path = str(as_path(data.store_dir) / where) if catalog["trained"] else where
    tokenizer = load_tokenizer(path)
    stores = {}
    for source in catalog["sources"]:
        store = TokenStore.open(str(as_path(data.store_dir) / source["store"]), data.chat)
        store.check_tokenizer(tokenizer.fingerprint)
        if data.chat is not None and store.coded:
            check_dropped(source["name"], store.manifest["chat"], data.chat.max_dropped)
        stores[source["name"]] = store
    return Opened(
        tokenizer=tokenizer,
        tokenizer_path=path,
        stores=stores,
        weights={s["name"]: s["rate"] for s in catalog["sources"]},
        languages={s["name"]: s["language"] for s in catalog["sources"]},
        licenses={s["name"]: s["license"] for s in catalog["sources"]},
        texts=catalog.get("texts", {}),
    )


def open_stream(
    data: Data,
    opened: Opened,
    length: int,
    seed: int = 0,
    examples_after: Callable[[int], int] | None = None,
) -> Stream:
    """Returns the training stream over opened stores; a resumed run takes its ``at(state)``.

    Args:
      data: the configuration.
      opened: its stores.
      length: T.
      seed: of the shuffles.
      examples_after: steps -> examples that they consume, for ``Mixture.stages`` by steps.

    Raises:
      ConfigError: the tokenizer lacks what ``Data.denoising`` needs; a blend that cannot be.
      DataError: a source that cannot be streamed.
    """
    made = open_objective(data, opened, length)
    orders = dict.fromkeys(opened.stores, Order(data.bins))
    for source in data.mixture.sources if data.mixture else ():
        again = source.exhausted == "repeat"
        orders[source.name] = Order(
            data.bins,
            source.curriculum,
            count("Source.tokens", source.tokens) if again and source.tokens is not None else None,
            source.epochs if again else None,
        )
    stream = Stream(
        *(opened.stores, opened.weights, length, seed, data.packing), objective=made, orders=orders
    )
    blend = data.mixture and _blend(data, data.mixture, stream, examples_after)
    return stream.planned(blend) if blend else stream


def _blend(
    data: Data, mixture: Mixture, stream: Stream, examples_after: Callable[[int], int] | None
) -> Blend | None:
    """Returns the blend of a mixture's budgets, stages and replay; None if it has only rates."""
    rows = {s.name: _budget(s, stream) for s in mixture.sources if s.budgeted}
    limits = {s.name: rows[s.name] for s in mixture.sources if s.budgeted and s.exhausted == "stop"}
    rates = stream.history[0][1]
    if mixture.rates == "budgets":
        rates = {name: float(number) for name, number in rows.items()}
    elif mixture.rates == "proportional" and data.bins > 1:
        # An epoch takes all sources the same time, so their bins go together.
        rates = {name: float(number) for name, number in stream.rows.items()}
    elif not limits and not mixture.stages and not mixture.replay:
        return None
    found = stages(mixture, rates, stream.length, examples_after)
    return Blend(stream.sources, found, limits)


def _budget(source: Source, stream: Stream) -> int:
    """Returns the rows that a source's budget allows, at least 1."""
    reader = stream.readers[source.name]
    if source.epochs is not None:
        return max(round(source.epochs * reader.whole), 1)
    return max(round(count("Source.tokens", source.tokens) / reader.tokens), 1)


def open_objective(data: Data, opened: Opened, length: int) -> RowObjective | None:
    """Returns the objective of the stream's rows; None for next-token prediction."""
    return make_row_objective(data.denoising, opened.tokenizer, length)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."
