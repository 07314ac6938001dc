"""What the model does with a text, as views of plain data. `verify` checks them on your own checkpoint.

    from octavo import lens

    lens.attention("runs/my-1", "The king said", layer=2, head=1).weights     # (T, T)

A view is a function of a RUN, and of a text in most cases. It returns a `View`, a small frozen dataclass: `to_dict()`
is its JSON, printing it gives tables, notebooks display it, `lens.plots` draws it. `octavo.views` is the table of all
views. `lens.attention` is the function and hides the module of the same name, so code inside the package imports it
from the module: `from octavo.lens.attention import attention`.
"""

from collections.abc import Callable
from typing import Any

from octavo import views
from octavo.errors import OctavoError
from octavo.lens.ablation import ablation
from octavo.lens.attention import attention
from octavo.lens.contributions import contributions
from octavo.lens.flow import flow
from octavo.lens.logit_lens import logit_lens
from octavo.lens.losses import losses
from octavo.lens.neighbors import neighbors
from octavo.lens.next_token import next_token
from octavo.lens.position import position
from octavo.lens.projection import projection
from octavo.lens.shapes import shapes
from octavo.lens.surprisal import surprisal
from octavo.lens.tokens import tokens
from octavo.lens.verify import verify
from octavo.lens.view import Table, View
from octavo.runs import RunLike
from octavo.settings import ModelSettings, unknown_name_error

__all__ = [
    "FUNCTIONS", "Table", "View", "ablation", "attention", "contributions", "flow", "inspect", "logit_lens", "losses",
    "neighbors", "next_token", "position", "projection", "shapes", "surprisal", "tokens", "verify",
]  # fmt: skip

FUNCTIONS: dict[str, Callable[..., View]] = {name: globals()[name] for name in views.VIEWS}


def inspect(run: RunLike | ModelSettings, view: str, **options: Any) -> View:
    """A view by its name, with the options of `octavo.views`. Of these, only `shapes` takes settings without a model.

    Raises `OctavoError` for an unknown view and for an option that the view does not take.
    """
    if view not in FUNCTIONS:
        raise unknown_name_error("view", view, FUNCTIONS)
    spec = views.VIEWS[view]
    if isinstance(run, ModelSettings) and not spec.takes_preset:
        raise OctavoError(f"{view} needs a trained model, and a preset has only settings", f"octavo inspect RUN {view}")
    if extra := sorted(options.keys() - set(spec.options)):
        views_with_option = [each.name for each in views.VIEWS.values() if extra[0] in each.options]
        raise OctavoError(
            f"{view} takes no {extra[0]}; its options: {', '.join(spec.options) or 'none'}",
            f"a view with {extra[0]}: {', '.join(views_with_option)}" if views_with_option else None,
        )
    return FUNCTIONS[view](run, **options)
