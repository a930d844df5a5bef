"""Which layers tell wanted from unwanted? (the paper's figure of the signature).

    python analyses/signature.py [--model M --data DIR]

The signature of every layer as the paper has it, which follows the size of activations, and the distance between the
means of wanted and unwanted activations, beside that of shuffled demonstrations (docs/method.md 2.5).
"""

import pandas as pd

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.plots.findings import along


def run(subject: Subject) -> Finding:
    """Signatures of every behaviour's edit."""
    rows, told, figures = [], [], {}
    for behaviour in subject.behaviours():
        fitted = subject.fitted(behaviour)
        signatures = fitted.edit.signatures or {}
        shuffled = [control.centred_signature for control in fitted.shuffled(subject.draws)]
        own = [
            {
                "behaviour": behaviour,
                "name": behaviour,
                "layer": layer,
                "signature": signatures[layer],
                "value": value,
                # A distance of means of this sample: what else it could have been is told by the shuffled ones.
                "low": float("nan"),
                "high": float("nan"),
                "control_low": min(one[layer] for one in shuffled) if shuffled else float("nan"),
                "control_high": max(one[layer] for one in shuffled) if shuffled else float("nan"),
            }
            for layer, value in fitted.edit.centred_signature.items()
        ]
        rows += own
        frame = pd.DataFrame(own)
        paper, distance = (int(frame.loc[frame[name].idxmax(), "layer"]) for name in ("signature", "value"))
        beyond = int((frame["value"] > frame["control_high"]).sum())
        beside = f"; in {beyond} of {len(frame)} layers the distance is above that of all {len(shuffled)} shuffled sets"
        told.append(
            f"{behaviour.capitalize()}. The signature is largest in layer {paper}, the distance of the means in layer "
            f"{distance}, of layers 0 to {len(frame) - 1}{beside if shuffled else ''}."
        )
        title = f"Distance of wanted and unwanted: {behaviour}; shaded: shuffled demonstrations"
        figures[behaviour] = along(frame, "layer", "layer", "distance of the means, activations' units", title)
        paper_rows = frame.assign(value=frame["signature"]).drop(columns=["control_low", "control_high"])
        figures[f"{behaviour}_paper"] = along(
            paper_rows, "layer", "layer", "signature, activations' units", f"Signature as the paper has it: {behaviour}"
        )
    return Finding(pd.DataFrame(rows), "\n".join(told), figures, not_run=subject.reasons())


if __name__ == "__main__":
    command(run, __doc__)
