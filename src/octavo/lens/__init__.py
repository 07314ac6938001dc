"""What the model does with a text: views of plain data. What they rest on, `verify` proves on your own checkpoint.

    from octavo import lens

    lens.attention("runs/my-1", "The king said", layer=2, head=1).weights     # (T, T)

A view is a function of a RUN and a text to a small frozen dataclass: `plain()` is what JSON knows, printing it gives
tables, notebooks show it, `lens.plots` draws it.
"""

import inspect
from typing import Any

from octavo.errors import OctavoError
from octavo.lens.attention import attention
from octavo.lens.contributions import ablate, residual
from octavo.lens.embedding import embedding_map, neighbors, position
from octavo.lens.logit_lens import logit_lens
from octavo.lens.losses import losses
from octavo.lens.next_token import predict
from octavo.lens.shapes import shapes
from octavo.lens.surprisal import score
from octavo.lens.tokens import RUN, tokens
from octavo.lens.verify import verify
from octavo.lens.view import Table, View
from octavo.settings import ModelSettings, unknown_name_error

__all__ = [
    "VIEWS", "Table", "View", "ablate", "attention", "embedding_map", "logit_lens", "look", "losses", "neighbors",
    "position", "predict", "residual", "score", "shapes", "tokens", "verify",
]  # fmt: skip

# What `octavo inspect` calls them, in the order in which a learner meets them.
VIEWS = {
    "shapes": shapes, "tokens": tokens, "position": position, "neighbors": neighbors, "map": embedding_map,
    "attention": attention, "next": predict, "lens": logit_lens, "residual": residual, "score": score, "ablate": ablate,
    "losses": losses, "verify": verify,
}  # fmt: skip


def look(run: RUN | ModelSettings, view: str, **options: Any) -> View:
    """A view by its name. Raises `OctavoError` for one that isn't there, and for an option that it doesn't take."""
    if view not in VIEWS:
        raise unknown_name_error("view", view, VIEWS)
    if isinstance(run, ModelSettings) and view != "shapes":
        raise OctavoError(
            f"{view} looks at a trained model, and a preset has only settings", f"octavo inspect RUN {view}"
        )
    function: Any = VIEWS[view]
    takes = list(inspect.signature(function).parameters)[1:]
    if extra := sorted(options.keys() - set(takes)):
        others = [name for name, each in VIEWS.items() if extra[0] in inspect.signature(each).parameters]  # type: ignore[arg-type]
        raise OctavoError(f"{view} takes no {extra[0]}; it takes {', '.join(takes) or 'none of these'}",
                          f"{' or '.join(others)}, if you meant that view" if others else None)  # fmt: skip
    found: View = function(run, **options)
    return found
