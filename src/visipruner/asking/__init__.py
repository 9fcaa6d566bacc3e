"""Questions about pictures: asked, timed, recorded, and drawn. `vp.ask(...)` is `visipruner run`."""

from visipruner.asking.ask import Asked, ask
from visipruner.asking.record import Answered

__all__ = ["Answered", "Asked", "ask"]
