"""Models in plain transformers, whose own modules are exchanged by hand: what the tests measure against."""

import torch
from transformers import AutoModelForCausalLM

HEADS = 4


class Plain:
    """A Hugging Face model with path patching by its own modules."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        self.kind = self.model.config.model_type
        self.blocks = {"gpt2": lambda m: m.transformer.h, "gpt_neox": lambda m: m.gpt_neox.layers}.get(
            self.kind, lambda m: m.model.layers
        )(self.model)

    def norm(self, layer):
        return self.blocks[layer].ln_1 if self.kind == "gpt2" else self.blocks[layer].input_layernorm

    def attention(self, layer):
        return getattr(self.blocks[layer], {"gpt2": "attn", "gpt_neox": "attention"}.get(self.kind, "self_attn"))

    def output(self, layer):
        """The projection behind z."""
        return getattr(self.attention(layer), {"gpt2": "c_proj", "gpt_neox": "dense"}.get(self.kind, "o_proj"))

    def mlp(self, layer):
        """What gives the MLP's part of the stream."""
        return self.blocks[layer].post_feedforward_layernorm if self.kind == "gemma2" else self.blocks[layer].mlp

    def mlp_input(self, layer):
        """What reads the stream for the MLP."""
        block = self.blocks[layer]
        names = {"gpt2": "ln_2", "gemma2": "pre_feedforward_layernorm"}
        return getattr(block, names.get(self.kind, "post_attention_layernorm"))

    def way(self, layer, way, stream):
        """Hooks that give one way of all heads what it reads off a stream."""
        attention, place = self.attention(layer), "qkv".index(way)
        with torch.no_grad():
            normed = self.norm(layer)(stream)
        if self.kind == "gpt2":

            def fused(_, __, out, normed=normed):
                new, width = attention.c_attn.forward(normed), out.shape[-1] // 3
                out = out.clone()
                out[..., place * width : (place + 1) * width] = new[..., place * width : (place + 1) * width]
                return out

            return [(attention.c_attn, fused)]
        if self.kind == "gpt_neox":

            def by_head(_, __, out, normed=normed):
                split = lambda x: x.unflatten(-1, (HEADS, 3, -1))  # noqa: E731
                out, new = split(out.clone()), split(attention.query_key_value.forward(normed))
                out[..., place, :] = new[..., place, :]
                return out.flatten(-3)

            return [(attention.query_key_value, by_head)]
        projection = getattr(attention, f"{way}_proj")
        return [(projection, lambda _, __, out, normed=normed: projection.forward(normed))]

    def run(self, ids, hooks=(), saved=()):
        """Logits, and the inputs or outputs of some modules."""
        found, handles = {}, []
        for module, hook in hooks:
            handles.append(module.register_forward_hook(hook))
        for name, module, side in saved:

            def save(_, given, out, name=name, side=side):
                value = given[0] if side == "in" else out
                found[name] = (value[0] if isinstance(value, tuple) else value).detach().clone()

            handles.append(module.register_forward_hook(save))
        try:
            with torch.no_grad():
                return self.model(ids).logits, found
        finally:
            for handle in handles:
                handle.remove()

    def with_z(self, layer, head, z):
        """A hook that gives one head its z: what goes into the output projection."""
        output = self.output(layer)

        def hook(_, given, __):
            x = given[0].clone().unflatten(-1, (HEADS, -1))
            x[..., head, :] = z.unflatten(-1, (HEADS, -1))[..., head, :]
            return output.forward(x.flatten(-2))

        return [(output, hook)]
