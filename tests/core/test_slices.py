"""Names of slices against Google Cloud's tables of TPU configurations."""

import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.slices import parse_slice

# (name, chips, topology, hosts, accelerator type) as the pages on v4, v5e, v5p and v6e have them.
TABLE = [
    ("v4-8", 4, "2x2x1", 1, "v4-8"),
    ("v4-32", 16, "2x2x4", 4, "v4-32"),
    ("v4-128", 64, "4x4x4", 16, "v4-128"),
    ("v4-6144", 3072, "12x16x16", 768, "v4-6144"),
    ("v5litepod-1", 1, "1x1", 1, "v5litepod-1"),
    ("v5e-8", 8, "2x4", 1, "v5litepod-8"),
    ("v5e-128", 128, "8x16", 32, "v5litepod-128"),
    ("v5e-256", 256, "16x16", 64, "v5litepod-256"),
    ("v5p-8", 4, "2x2x1", 1, "v5p-8"),
    ("v5p-64", 32, "2x4x4", 8, "v5p-64"),
    ("v5p-256", 128, "4x4x8", 32, "v5p-256"),
    ("v5p-1024", 512, "8x8x8", 128, "v5p-1024"),
    ("v5p-4096", 2048, "8x16x16", 512, "v5p-4096"),
    ("v5p-12288", 6144, "16x16x24", 1536, "v5p-12288"),
    ("v6e-32", 32, "4x8", 8, "v6e-32"),
    ("v7x-256", 128, "4x4x8", 32, None),
]


@pytest.mark.parametrize("name, chips, topology, hosts, accelerator", TABLE)
def test_tables(name, chips, topology, hosts, accelerator):
    found = parse_slice("Job.slice", name)
    assert (found.chips, found.topology_name, found.hosts) == (chips, topology, hosts)
    assert found.accelerator_type == accelerator
    assert found.hosts * found.chips_per_host == chips


@pytest.mark.parametrize(
    "name", ["v5p-7", "v5p-2", "v5e-2", "v5e-512", "v5p-192", "v9-8", "v5p", "v5p-0", "v5p-8\n", 5]
)
def test_what_is_no_slice(name):
    with pytest.raises(ConfigError, match="Job.slice"):
        parse_slice("Job.slice", name)
