"""Questions about pictures: asked, timed, recorded, and drawn. `vp.ask(...)` is `visipruner run`."""

from visipruner.asking.answered import Answered
from visipruner.asking.run import Asked, ask

__all__ = ["Answered", "Asked", "ask"]
