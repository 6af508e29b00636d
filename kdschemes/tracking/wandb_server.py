"""Check that W&B's server is reachable and knows the user before anything is sent."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from kdschemes.errors import UserError

TIMEOUT_SECONDS = 10.0
"""Timeout for the server's response."""


def check_login(command: str) -> str:
    """Return the address of W&B's server if it responds and accepts the user's key. `WANDB_MODE` is ignored.

    Raises:
        UserError: the package is missing (`command` needs it), there is no key, no response, or the key is refused.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.pop("WANDB_MODE", None)
    try:
        import wandb

        url = str(wandb.setup().settings.base_url)
        if not wandb.login(prompt=False, verify=False):
            raise UserError(f"not logged in to W&B at {url}: run `wandb login` (after `wandb offline`: `wandb online`)")
        check_answer(url)
        wandb.login(prompt=False, verify=True)
    except ImportError:
        raise UserError(f"{command} needs the package wandb: pip install wandb") from None
    except wandb.errors.AuthenticationError as error:
        raise UserError(f"W&B does not accept the key ({' '.join(str(error).split())}): run `wandb login`") from None
    finally:
        if mode is not None:
            os.environ["WANDB_MODE"] = mode
    return url


def check_answer(url: str, before: str = "") -> None:
    """Check that a server responds; `before` starts the message if it does not.

    Raises:
        UserError: no response within `TIMEOUT_SECONDS`.
    """
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # a response, if not a page
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{before}no server responds at {url} ({reason}); the same command resumes") from None
