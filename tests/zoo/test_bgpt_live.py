"""bGPT against two GPT-2s of transformers, put together as section 3 of the paper says."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import zoo  # noqa: E402

from t5x_llm.models.weight_map import to_hf  # noqa: E402


def _filled(module, prefix, weights, unused=()):
    """``module`` with the tensors under ``prefix``, all of them."""
    state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert set(missing) == set(unused) and not unexpected
    return module.eval()


@pytest.mark.filterwarnings("ignore")
def test_logits_of_every_patch_but_the_first():
    family, model, params = zoo.model("bgpt")
    weights = {
        name: torch.from_numpy(np.array(make()))
        for name, make in to_hf(family.weight_map(), params)
    }
    size, vocab, width = family.patch_size, family.vocab_size, family.d_model
    sizes = dict(n_embd=width, n_head=family.n_heads, layer_norm_epsilon=family.norm_eps)
    config = transformers.GPT2Config(
        n_layer=family.n_patch_layers, n_positions=family.max_patches, vocab_size=1, **sizes
    )
    over_patches = _filled(
        transformers.GPT2Model(config), "patch_level_decoder.base.", weights, ["wte.weight"]
    )
    embed = _filled(
        torch.nn.Linear(size * vocab, width), "patch_level_decoder.patch_embedding.", weights
    )
    config = transformers.GPT2Config(
        n_layer=family.n_byte_layers, n_positions=size + 1, vocab_size=vocab, **sizes
    )
    over_bytes = transformers.GPT2LMHeadModel(config)
    over_bytes = _filled(over_bytes, "byte_level_decoder.base.", weights, ["lm_head.weight"])
    over_bytes.tie_weights()

    length = zoo.LENGTH // size * size
    ids = zoo.tokens()[None, :length]
    patches = torch.from_numpy(ids.astype(np.int64)).reshape(-1, size)
    with torch.no_grad():
        one_hot = torch.nn.functional.one_hot(patches, vocab).float().reshape(1, len(patches), -1)
        features = over_patches(inputs_embeds=embed(one_hot)).last_hidden_state[0]
        known = over_bytes.transformer.wte(patches[1:, :-1])
        inputs = torch.cat([features[:-1, None], known], dim=1)
        expected = over_bytes(inputs_embeds=inputs).logits.reshape(-1, vocab).numpy()
    found = zoo.run(model)(params, ids)
    np.testing.assert_allclose(found[size - 1 : -1], expected, atol=1e-4, rtol=0)
