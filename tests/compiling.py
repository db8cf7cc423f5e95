"""Flags of XLA for tests: their programs are tiny, and compiling them is what takes the time."""

QUICKLY = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # The MLIR emitters take four times as long to compile a layer and its gradient. The tests of
    # minutes and those of several processes compile as users do, with them.
    "--xla_cpu_use_fusion_emitters=false",
    # One piece: cutting a small program into 32, each optimised by itself, costs a tenth more.
    "--xla_cpu_parallel_codegen_split_count=1",
)
