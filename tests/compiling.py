"""Flags of XLA for tests: their programs are tiny, and compiling them is what takes the time."""

import importlib.metadata

# The MLIR emitters take four times as long to compile a layer and its gradient. The tests of
# minutes and those of several processes compile as users do, with them. Newer jaxlibs have nothing
# else, and end a process that names the flag.
_JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
_EMITTERS = ("--xla_cpu_use_fusion_emitters=false",) if _JAXLIB < (0, 11) else ()
QUICKLY = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *_EMITTERS,
    # One piece: cutting a small program into 32, each optimised by itself, costs a tenth more.
    "--xla_cpu_parallel_codegen_split_count=1",
)
