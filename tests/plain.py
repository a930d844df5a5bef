"""Models in plain transformers, whose own modules are exchanged by hand: what the tests measure against."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

HEADS = 4
# What stands behind attention and the MLP, in front of the stream.
POST_NORM = ("gemma2", "olmo2", "olmo3")
# At which tokens an edit acts, by their places and the length of the prompt.
POSITIONS = {
    "all": lambda place, prompt: place >= 0,
    "prompt": lambda place, prompt: place < prompt,
    "answer": lambda place, prompt: place >= prompt,
    "last_prompt": lambda place, prompt: place == prompt - 1,
    "from_last_prompt": lambda place, prompt: place >= prompt - 1,
}


def alone(out):
    """What a module gives, without what it gives beside it."""
    return out[0] if isinstance(out, tuple) else out


def exchanged(out, new):
    """What a module gives, with something new in its place."""
    return (new, *out[1:]) if isinstance(out, tuple) else new


class Plain:
    """A Hugging Face model with path patching by its own modules."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        self.kind = self.model.config.model_type
        self.blocks = {"gpt2": lambda m: m.transformer.h, "gpt_neox": lambda m: m.gpt_neox.layers}.get(
            self.kind, lambda m: m.model.layers
        )(self.model)

    def norm(self, layer):
        """What stands between the stream and attention; OLMo 2 and 3 have nothing there."""
        name = "ln_1" if self.kind == "gpt2" else "input_layernorm"
        return getattr(self.blocks[layer], name, torch.nn.Identity())

    def norm_behind(self, module, layer) -> Any:
        """What stands between attention or the MLP and the stream; in most families nothing does."""
        return getattr(self.blocks[layer], f"post_{module}_layernorm") if self.kind in POST_NORM else None

    def attention(self, layer):
        return getattr(self.blocks[layer], {"gpt2": "attn", "gpt_neox": "attention"}.get(self.kind, "self_attn"))

    def output(self, layer):
        """The projection behind z."""
        return getattr(self.attention(layer), {"gpt2": "c_proj", "gpt_neox": "dense"}.get(self.kind, "o_proj"))

    def mlp(self, layer):
        """What gives the MLP's part of the stream."""
        return self.norm_behind("feedforward", layer) or self.blocks[layer].mlp

    def written(self, site, layer):
        """What gives the activation of a site."""
        if site == "resid_post":
            return self.blocks[layer]
        return self.mlp(layer) if site == "mlp_out" else self.norm_behind("attention", layer) or self.attention(layer)

    def mlp_input(self, layer):
        """What reads the stream for the MLP."""
        block = self.blocks[layer]
        names = {"gpt2": "ln_2", "gemma2": "pre_feedforward_layernorm", "olmo2": "mlp", "olmo3": "mlp"}
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
                found[name] = alone(given if side == "in" else out).detach().clone()

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

    def editing(self, edit, moved, acts=True):
        """Hooks of an edit at all of its layers, which say how far each moved the stream; it acts where a mask says."""
        acts = torch.as_tensor(acts)

        def hook_at(layer):
            def hook(_, __, out):
                x = alone(out)
                new = torch.where(acts[..., None], edit(x, layer), x)
                moved[layer] = new - x
                return exchanged(out, new)

            return hook

        def heads_hook_at(layer):
            output, norm = self.output(layer), self.norm_behind("attention", layer) or torch.nn.Identity()

            def hook(_, given, __):
                z = given[0].unflatten(-1, (HEADS, -1))
                new = torch.where(acts[..., None, None], edit(z, layer), z)
                before, after = (output.forward(one.flatten(-2)) for one in (z, new))
                moved[layer] = norm.forward(after) - norm.forward(before)
                return after

            return hook

        if edit.site == "z":
            return [(self.output(layer), heads_hook_at(layer)) for layer in edit.layers]
        return [(self.written(edit.site, layer), hook_at(layer)) for layer in edit.layers]

    def displacements(self, ids, edit, prompt, positions):
        """How far each layer of an edit moves the stream in the edited run; `prompt` is the length of the prompt."""
        moved = {}
        self.run(ids, self.editing(edit, moved, POSITIONS[positions](torch.arange(ids.shape[1]), prompt)))
        return moved
