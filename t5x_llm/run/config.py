"""Configuration of a run, as gin fills it: one field a part of the house."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from t5x_llm.checkpoint import CheckpointConfig
from t5x_llm.config import Flags, Resolved, load, parameters, parse_flags, register, registered
from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError, check_choice, check_number, nearest
from t5x_llm.core.fields import later
from t5x_llm.core.paths import as_path, check_place, check_written
from t5x_llm.data.denoising import Denoising
from t5x_llm.data.instruct.chat_config import Chat
from t5x_llm.data.instruct.prompts import Prompts
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.infer.sampler import Sampling
from t5x_llm.models.base_storage import STORAGE
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.model import Model, cached_model
from t5x_llm.models.stability import Stability
from t5x_llm.nn.adapters.adaptive import AdaLoRA
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.nn.adapters.prompting import Prefix, Prompt, PTuning
from t5x_llm.nn.adapters.residual import Bottleneck
from t5x_llm.nn.adapters.scaling import IA3
from t5x_llm.nn.remat import REMAT
from t5x_llm.nn.rotary_scaling import DynamicRotaryScaling, LongRotaryScaling, RotaryScaling
from t5x_llm.optim import BatchRamp, Optimizer, Piecewise, Schedule
from t5x_llm.parallel import MeshConfig, Pipeline
from t5x_llm.run.federated import Federated, check_federated
from t5x_llm.run.objective import check_objective
from t5x_llm.run.results_config import Evaluation, Export, Samples
from t5x_llm.run.scoring_config import check_scoring
from t5x_llm.text import TokenizerTraining
from t5x_llm.train.config import Loop
from t5x_llm.train.hooks.tracking import MLflow, Tracking, WandB
from t5x_llm.train.scoring import Classification, Regression, Scoring
from t5x_llm.train.spike import SpikeConfig
from t5x_llm.train.watchdog import LifeConfig

OPERATIVE_CONFIG = "operative_config.gin"
# Keys of ``Run.shared``, to the names under which gin binds them.
SHARED_NAMES = {
    "model": "Run.model",
    "optimizer": "Run.optimizer",
    "data": "Run.data",
    "stability": "Run.stability",
    "adapter": "Run.adapter",
    "task": "Run.task",
    "base_storage": "Run.base_storage",
    "federated": "Run.federated",
    "sequence_length": "Loop.sequence_length",
    "seed": "Loop.seed",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that decides what a run does.

    Attributes:
      directory: where the run lives; created if need be, resumed if it holds checkpoints.
      model: a family preset, such as ``@Llama()``.
      data: sources, tokenizer and store.
      loop: steps, batch, sequence length, seed.
      mesh: how the devices are split among the axes.
      optimizer: the optimizer with its learning rate schedule.
      precision: parameter and compute dtypes.
      remat: what the backward pass finds saved: none, full, dots, save_qkv, save_qkv_context,
        save_attention, save_attention_up (and one of a gated layer's two products),
        save_projections; or in the host's memory, offload_stream (layers' inputs, as full has them)
        and offload_projections (what save_projections keeps).
      compiler_options: XLA's, for the train step on TPU alone; those of libtpu have names of
        ``xla_tpu_...``. Other platforms know none of these and are given none.
      stability: changes to the preset's norms and logits, such as ``@Stability()``, or None.
      z_loss: weight of log(Z)^2; PaLM's is 1e-4.
      label_smoothing: share of a target's probability that is spread evenly over the vocabulary, as
        torch's CrossEntropyLoss; the loss reported is without it, ``smoothing`` is what it adds.
      embed_gradient: share of the gradient that reaches the embedding table by way of the input,
        by step (GLM-130B, arXiv 2210.02414, section 3.3); None for the preset's.
      neftune: alpha of NEFTune's noise on embeddings (arXiv 2310.05914; 5 to 15), or None.
      task: what is learned in place of the next token: ``@Classification()`` or ``@Regression()``
        of whole documents, whose labels ``Source.score`` names; None for language modelling.
      start_from: a Hugging Face directory whose weights a fresh run starts from.
      adapter: small trained parts, such as ``@LoRA()``; the model of ``start_from`` is frozen then,
        and checkpoints are without it. None trains the model.
      start_adapter: a PEFT directory whose adapter a fresh run begins with, or None.
      base_storage: storage of the frozen model: float32, bfloat16, or its linear layers in few
        bits, nf4 (QLoRA, arXiv 2305.14314: 4.127 bits a weight) or int8 (a scale an output); gptq
        takes them as the directory of ``start_from`` has them (LLMTune).
      federated: rounds of several parties that train the adapter, such as ``@Federated()``; None
        trains on all data in one place.
      checkpoint: when checkpoints are saved and how many are kept.
      spike: what counts as a loss spike, and what is done about it.
      life: how long to wait for a step, and for the process to end.
      evaluation: rows, tokens and baseline of evaluations.
      samples: texts that the model writes while it learns.
      tracking: experiment trackers that get the metrics too.
      export: the Hugging Face directory written at the end.
    """

    directory: str
    model: Any
    data: Data
    loop: Loop
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    precision: Policy = dataclasses.field(default_factory=Policy)
    remat: str = "save_projections"
    compiler_options: dict[str, str | int | float | bool] = dataclasses.field(default_factory=dict)
    stability: Stability | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    embed_gradient: Piecewise | None = None
    neftune: float | None = None
    task: Scoring | None = later(None)
    start_from: str | None = None
    adapter: Adapter | None = None
    start_adapter: str | None = None
    base_storage: str = "bfloat16"
    federated: Federated | None = later(None)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    spike: SpikeConfig = dataclasses.field(default_factory=SpikeConfig)
    life: LifeConfig = dataclasses.field(default_factory=LifeConfig)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    samples: Samples = dataclasses.field(default_factory=Samples)
    tracking: Tracking = dataclasses.field(default_factory=Tracking)
    export: Export = dataclasses.field(default_factory=Export)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", with_length(self.data, self.loop.sequence_length))
        if self.task is not None:
            object.__setattr__(self, "data", check_scoring(self))
        families: tuple[Any, ...] = tuple(FAMILIES.values())
        if not isinstance(self.model, families):
            names = ", ".join(f"@{family.__name__}()" for family in FAMILIES.values())
            raise ConfigError("Run.model", self.model, f"a family preset: {names}")
        if not self.directory.strip():
            raise ConfigError("Run.directory", self.directory, "the path of a directory")
        check_written("Run.directory", self.directory)
        for name, place in (
            ("Run.start_from", self.start_from),
            ("Run.start_adapter", self.start_adapter),
            ("Evaluation.baseline", self.evaluation.baseline or None),
            ("Data.tokenizer", self.data.tokenizer),
        ):
            if isinstance(place, str):
                check_place(name, place)
        check_allowed(self.checkpoint.allow_changes)
        check_choice("Run.remat", self.remat, REMAT)
        _check_options(self.compiler_options)
        check_number("Run.z_loss", self.z_loss, low=0)
        check_number("Run.label_smoothing", self.label_smoothing, low=0, high=1)
        for _, share in self.embed_gradient.points if self.embed_gradient else ():
            check_number("Run.embed_gradient", share, low=0, high=1)
        if self.neftune is not None:
            check_number("Run.neftune", self.neftune, above=0)
        self._check_adapter()
        check_federated(self)
        if self.export.enabled:
            self.check_exportable("Set Export.enabled = False; the run directory has the weights.")
        check_objective(self.model, self.data.denoising, self.samples.prompts)
        self._check_length()

    def _check_adapter(self) -> None:
        check_choice("Run.base_storage", self.base_storage, STORAGE)
        if self.adapter is None:
            for name, value in (
                ("Export.adapter_for", self.export.adapter_for),
                ("Run.start_adapter", self.start_adapter),
            ):
                if value:
                    raise ConfigError(name, value, "nothing without Run.adapter, such as @LoRA()")
            return
        if not isinstance(self.adapter, Adapter):
            raise ConfigError("Run.adapter", self.adapter, "an adapter, such as @LoRA(), or None")
        if self.start_from is None:
            raise ConfigError(
                "Run.start_from",
                None,
                f"the directory of a model, as Run.adapter = @{self.adapter.method}() trains a "
                "small part beside one",
                "t5x-llm import writes such a directory of a Hugging Face or GGUF model.",
            )
        if self.optimizer.trained:
            raise ConfigError(
                "Optimizer.trained",
                self.optimizer.trained,
                "(), as Run.adapter freezes all of the model",
                "LoRA.targets says which layers have an adapter.",
            )
        self.adapter.check(self.decoder(), self.loop.steps)

    def _check_length(self) -> None:
        decoder = self.decoder()
        longest, why = decoder.learned_positions, "Learned positions end there"
        if longest is None and decoder.kind != "encoder_decoder":
            longest, why = getattr(self.model, "max_length", None), "The exported model says so"
        virtual = 0 if self.adapter is None else self.adapter.virtual
        if longest is not None and self.loop.sequence_length > longest - virtual:
            raise ConfigError(
                "Loop.sequence_length",
                self.loop.sequence_length,
                f"at most {type(self.model).__name__}.max_length = {longest}"
                + (f", less the {virtual} virtual tokens of Run.adapter" if virtual else ""),
                f"{why}: shorten the sequence, or give the model more.",
            )

    def decoder(self) -> DecoderConfig:
        """Returns the model config that is trained: the preset's, with this run's changes."""
        config = self.model.decoder()
        for name in ("stability", "embed_gradient", "neftune"):
            if getattr(self, name) is not None and not isinstance(config, DecoderConfig):
                kind = type(self.model).__name__
                raise ConfigError(f"Run.{name}", getattr(self, name), f"None: {kind} has no place")
        if self.stability is not None:
            config = self.stability.apply(config)
        return config if self.neftune is None else dataclasses.replace(config, neftune=self.neftune)

    @functools.cached_property
    def storage(self) -> str:
        """Returns ``base_storage``, for GPTQ as config.json says it: bits, inputs of a group.

        Raises:
          ConfigError: ``start_from`` is no GPTQ directory.
          CheckpointError: it is no model.
        """
        if self.base_storage != "gptq" or self.start_from is None:
            return self.base_storage
        from t5x_llm.hf.gptq import read_settings

        return read_settings(self.start_from)[1].storage

    def build_model(self) -> Model:
        """Makes the model, without parameters."""
        return cached_model(self.decoder(), self.precision, self.remat, self.adapter)

    def check_exportable(self, remedy: str) -> None:
        """Raises ConfigError if the preset's config.json cannot say what this run trains."""
        if self.stability is not None:
            plain = self.model.decoder()
            if self.stability.apply(plain) != plain:
                options = " and ".join(self.stability.chosen)
                family = type(self.model).__name__
                expected = f"none, as {family}'s config.json has no field for {options}"
                raise ConfigError("Run.stability", self.stability, expected, remedy)

    def shared(self) -> dict[str, Any]:
        """Returns the parts that a resumed run must share with the one it continues, by name."""
        some: dict[str, Any] = {} if self.stability is None else {"stability": self.stability}
        if self.adapter is not None:
            some |= {"adapter": self.adapter, "base_storage": self.base_storage}
        if self.task is not None:
            some |= {"task": self.task}
        if self.federated is not None:
            some |= {"federated": self.federated}
        return some | {
            "model": self.model,
            "optimizer": self.optimizer,
            "data": self.data,
            "sequence_length": self.loop.sequence_length,
            "seed": self.loop.seed,
        }


def with_length(data: Data, length: int) -> Data:
    """Returns data whose conversations are split at ``length`` tokens, unless it says at what."""
    if data.chat is None or data.chat.max_tokens is not None:
        return data
    return dataclasses.replace(data, chat=dataclasses.replace(data.chat, max_tokens=length))


def check_allowed(names: tuple[str, ...]) -> None:
    """Raises ConfigError unless each of ``CheckpointConfig.allow_changes`` is a name of gin's."""
    known = registered()
    for name in names:
        owner, dot, field = name.rpartition("/")[2].rpartition(".")
        if name in SHARED_NAMES or name.rpartition("/")[2].rpartition(".")[2] in known:
            continue  # as an older version named it; or a class
        target = known.get(owner.rpartition(".")[2])
        fields = parameters(target) if target is not None else {}
        if dot and field in fields:
            continue
        choices = [f"{owner}.{each}" for each in fields] or [
            *known, *(f"{each}.{field}" for each in known if field in parameters(known[each]))
        ]  # fmt: skip
        near = nearest(name, choices)
        raise ConfigError(
            "CheckpointConfig.allow_changes",
            name,
            "names of fields as gin binds them, such as 'Schedule.peak', or of classes",
            (f"Did you mean {near!r}? " if near else "") + "t5x-llm fields lists them.",
        )


def _check_options(options: dict[str, str | int | float | bool]) -> None:
    for key in options:
        if not key.startswith("xla_"):
            expected = "names of XLA's options, such as xla_tpu_..., without dashes before them"
            raise ConfigError("Run.compiler_options", key, expected)


register(
    Run,
    Data,
    Denoising,
    Mixture,
    Source,
    Chat,
    Prompts,
    TokenizerTraining,
    Loop,
    BatchRamp,
    MeshConfig,
    Pipeline,
    Optimizer,
    Schedule,
    Policy,
    CheckpointConfig,
    SpikeConfig,
    LifeConfig,
    Evaluation,
    Samples,
    Sampling,
    Tracking,
    WandB,
    MLflow,
    Export,
    RotaryScaling,
    LongRotaryScaling,
    DynamicRotaryScaling,
    Stability,
    LoRA,
    AdaLoRA,
    IA3,
    Bottleneck,
    Prefix,
    Prompt,
    PTuning,
    Classification,
    Regression,
    Federated,
    Piecewise,
    *FAMILIES.values(),
)


def load_run(flags: Flags) -> tuple[Run, Resolved]:
    """Returns the run that gin flags describe, and the config as it was resolved.

    Raises:
      ConfigError: the config has a mistake.
    """
    if not flags.gin_files and not flags.bindings:
        raise ConfigError(
            "--gin_file",
            None,
            "a gin file",
            "For a first run: --gin_file=configs/recipes/quickstart.gin",
        )
    resolved = load("Run", *flags[:3], flags.allow_imports)
    return resolved.call(), resolved


def load_saved(directory: str) -> tuple[Run, Resolved]:
    """Returns the run of a run directory, from its operative config; see ``load_run``.

    Raises:
      ConfigError: the directory has no operative config.
    """
    path = as_path(directory) / OPERATIVE_CONFIG
    if not path.exists():
        raise ConfigError("run directory", str(directory), f"a directory with {OPERATIVE_CONFIG}")
    return load_run(parse_flags([f"--gin_file={path}"]))
