"""Whether W&B may be used online: asked by what logs and by what builds reports."""

import configparser
import netrc
import os
from pathlib import Path

WANDB_HOST = "api.wandb.ai"


def wandb_mode(wanted: str = "auto") -> str:
    """``online`` when asked for or logged in, else ``offline``; never leads to a prompt.

    WANDB_MODE decides before everything else, as everywhere in W&B.
    """
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    if wanted != "auto":
        return wanted
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether there is a key, in the environment or in ~/.netrc; whether it is valid only the server knows."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = _server().split("//")[-1].strip("/")
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server() -> str:
    """Address of the W&B server, found as W&B does: the environment, else where ``wandb login --host=URL`` puts it."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([home / "settings", Path("wandb") / "settings"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return f"https://{WANDB_HOST}"
    return settings.get("default", "base_url", fallback=f"https://{WANDB_HOST}")
