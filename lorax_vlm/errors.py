"""Every error LoRAX raises on purpose, and its wording. No torch.

LoraxError
├── UsageError                 a call or command cannot be carried out as it was asked (also ValueError)
├── PathError                  a named file or folder cannot be read or written (also OSError)
├── ImageError                 one image could not be read (also ValueError)
├── ExampleError               one training example cannot be used (also ValueError)
│   └── PromptError            a question or prompt cannot be asked
├── DataError                  a data folder or file has malformed rows (also ValueError)
├── MalformedRow               one of them; readers collect these for a DataError (also ValueError)
├── UnknownModel               not in the catalogue, not a path, not a hub id (also LookupError)
├── CheckpointError            a checkpoint's parts disagree (also ValueError)
├── OutOfMemoryForecast        it would not fit, said before it is tried (also MemoryError)
├── OutOfMemory                there was not enough, though as little was tried as can be (also MemoryError)
├── AdapterError               anything about one adapter
│   ├── AdapterNameError       a name that cannot be a folder (also ValueError)
│   ├── AdapterNotFound        (also LookupError)
│   ├── AmbiguousAdapter       several are meant by a name (also LookupError)
│   ├── AdapterExists          (also ValueError)
│   ├── DamagedAdapter         its files are not a sound PEFT LoRA (also ValueError)
│   ├── UnsupportedAdapter     sound, but uses what cannot be run here (also ValueError)
│   ├── IncompatibleAdapter    sound, but for another base (also ValueError)
│   ├── UntrainedAdapter       it changes nothing (also ValueError)
│   ├── TransferRefused        it cannot be moved to that base (also ValueError)
│   └── SignatureRefused       it is not signed by the key that is expected (also ValueError)
├── RowFailed                  one row of a batch failed for a reason nobody foresaw: a bug (also RuntimeError)
├── RemoteError                an address cannot be read or written (also OSError)
│   └── InterruptedTransfer    the connection broke; another try may help
├── AdapterMemoryExceeded      the adapters of one call do not fit their memory together (also MemoryError)
├── TrainingError
│   ├── NonFiniteLoss          (also ArithmeticError)
│   ├── NothingToResume        (also LookupError)
│   └── RunInUse               another process trains under that name (also BlockingIOError)
└── MissingExtra               an optional dependency is not installed (also ImportError)

Every message says what failed, the facts that disagree, and what to do next; ``facts`` and ``next`` say the same to
programs. The command line turns any of these into one message, and ends with exit code 2 for a ``UsageError``, else 1.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

from lorax_vlm.foreign import shown_address, without_secrets

_NEAREST, _FEW = 3, 8
"""Names that an error about a name shows: all of a few, else the nearest."""


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The names that look most like one, or whose last part does."""

    def likeness(other: str) -> tuple[float, float]:
        whole, end = (
            SequenceMatcher(None, name.casefold(), part.casefold()).ratio()
            for part in (other, other.rpartition(".")[2])
        )
        return max(whole, end), whole

    return sorted(known, key=likeness, reverse=True)[:_NEAREST]


class LoraxError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1
    """Of a command that ends with it."""
    next = ""
    """What to do, where there is more to say than what is wrong; part of the message, too."""

    @property
    def facts(self) -> dict[str, object]:
        """What disagrees, by name, for programs: the fields that the class says it has."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "next"}


class UsageError(LoraxError, ValueError):
    """A call or a command cannot be carried out as it was asked: an option, a name or a combination is wrong."""

    exit_code = 2


class PathError(LoraxError, OSError):
    """A file or folder that somebody named cannot be read or written. ``path`` is it."""

    def __init__(self, path: str, reason: str, hint: str = "") -> None:
        self.path, self.reason, self.next = path, reason, hint
        super().__init__(f"{path}: {reason}.{f' {hint}' if hint else ''}")

    @classmethod
    def of(cls, path: object, error: OSError, hint: str = "") -> "PathError":
        """From the system's own error."""
        return cls(str(path), error.strerror or str(error) or type(error).__name__, hint)


class ImageError(LoraxError, ValueError):
    """An image could not be read. ``source`` names it."""

    def __init__(self, source: str, reason: str) -> None:
        self.source, self.reason = source, reason
        super().__init__(f"Cannot use image {source}: {reason}")


class ExampleError(LoraxError, ValueError):
    """An example cannot be trained on, or measured with. ``example`` names it."""

    def __init__(self, example: str, reason: str) -> None:
        self.example, self.reason = example, reason
        super().__init__(f"Cannot use {example}: {reason}")


class PromptError(ExampleError):
    """A question or prompt cannot be asked. ``example`` names it."""

    def __init__(self, prompt: str, reason: str) -> None:
        super().__init__(prompt, reason)
        self.args = (f"Cannot ask {prompt}: {reason}",)


class DataError(LoraxError, ValueError):
    """A data set has malformed rows. ``problems`` lists them all as ``file:line: reason``."""

    shown = 10

    def __init__(self, source: str, problems: Sequence[str], hint: str = "") -> None:
        self.source, self.problems, self.next = source, list(problems), hint
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        lines = [f"{source}: {count}.", *(f"  {problem}" for problem in problems[: self.shown])]
        if len(problems) > self.shown:
            lines.append(f"  ... and {len(problems) - self.shown} more")
        super().__init__("\n".join([*lines, *([hint] if hint else [])]))


def one_line(error: LoraxError) -> str:
    """Why, for a list with a line for each; a data set's problems without where they are, which the list says."""
    text = "; ".join(error.problems) if isinstance(error, DataError) else str(error)
    return " ".join(text.split())


class MalformedRow(LoraxError, ValueError):
    """One row of data cannot be used. Readers collect these; nobody outside them sees one."""

    def __init__(self, reason: str, *, field: str = "", value: str = "", wanted: str = "") -> None:
        self.reason, self.field, self.value, self.wanted = reason, field, value, wanted
        super().__init__(reason)


class UnknownModel(LoraxError, LookupError):
    """A model name is not in the catalogue and is no local path."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        super().__init__(
            f"Unknown model {name!r}: it is not in the catalogue ({', '.join(known)}), not an existing folder, "
            "and not a hub id of the form owner/name. See: lorax-vlm models list"
        )


class CheckpointError(LoraxError, ValueError):
    """A checkpoint's parts disagree with each other or with what its family needs. ``problems`` lists all."""

    def __init__(self, checkpoint: str, problems: Sequence[str], hint: str = "") -> None:
        self.checkpoint, self.problems, self.next = checkpoint, list(problems), hint
        lines = [f"{checkpoint} cannot be used:", *(f"  {problem}" for problem in problems)]
        super().__init__("\n".join([*lines, *([hint] if hint else [])]))


class OutOfMemoryForecast(LoraxError, MemoryError):
    """A model would not fit into the free memory; nothing was loaded."""

    def __init__(self, model: str, needed_bytes: int, free_bytes: int, device: str, hint: str) -> None:
        self.model, self.device, self.next = model, device, hint
        self.needed_bytes, self.free_bytes = needed_bytes, free_bytes
        super().__init__(
            f"{model} needs about {needed_bytes / 1e9:.1f} GB on {device}, {free_bytes / 1e9:.1f} GB are free. "
            f"Nothing was loaded. {hint}"
        )


class OutOfMemory(LoraxError, MemoryError):
    """What was tried does not fit the memory, and less cannot be tried. ``error`` is the library's own."""

    def __init__(self, what: str, error: Exception) -> None:
        self.error = error
        self.next = "Fewer beams or a shorter text need less; so does --quantize 8bit or 4bit, or another device."
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        super().__init__(f"There is not enough memory for {what}: {reason}. {self.next}")


class AdapterError(LoraxError):
    """Anything about one adapter. ``adapter`` names it."""

    def __init__(self, adapter: str, message: str) -> None:
        self.adapter = adapter
        super().__init__(message)


class AdapterNameError(AdapterError, ValueError):
    """A name that cannot be an adapter's."""

    def __init__(self, adapter: str) -> None:
        super().__init__(
            adapter,
            f"{adapter!r} cannot be an adapter's name. Use 1 to 96 letters from a to z, digits, '-', '_' and '.', "
            "starting with a letter or digit, without path separators or '..'. The name 'base' is reserved, and so are "
            "those that Windows keeps for devices, such as 'con'.",
        )


class AdapterNotFound(AdapterError, LookupError):
    """No adapter of that name in the store or attached."""

    def __init__(self, adapter: str, place: str, known: Sequence[str]) -> None:
        few = len(known) <= _FEW
        listing = ", ".join(known if few else _nearest(adapter, known)) or "none"
        what = "There" if few else f"Nearest of {len(known)}"
        self.next = "See: lorax-vlm adapters list"
        super().__init__(adapter, f"No adapter {adapter!r} in {place}. {what}: {listing}. {self.next}")


class AmbiguousAdapter(AdapterError, LookupError):
    """Several adapters are meant by a name. ``meant`` are all of them."""

    def __init__(self, adapter: str, place: str, meant: Sequence[str]) -> None:
        self.meant = sorted(meant)
        more = f" and {len(meant) - _NEAREST} more" if len(meant) > _NEAREST else ""
        listing = ", ".join(self.meant[:_NEAREST])
        self.next = "Write one of them out, or name its base."
        super().__init__(adapter, f"{adapter!r} may be any of {listing}{more} in {place}. {self.next}")


class AdapterExists(AdapterError, ValueError):
    """The name is taken. ``owner`` is the base of the adapter that has it, when that is what speaks against it.

    ``own`` is for a demonstration that would replace what somebody made, ``taken`` for a file or folder that it would
    be written to.
    """

    def __init__(
        self, adapter: str, place: str, owner: str | None = None, *, own: bool = False, taken: bool = False
    ) -> None:
        if taken:
            self.next = "Name a new place."
            super().__init__(
                adapter, f"Adapter {adapter!r} was not written: there is something at {place} already. {self.next}"
            )
            return
        whose = f" for another base, {owner}" if owner else ""
        way_out = "remove it" if owner else "replace it (replace=True), or remove it"
        if own:
            whose, way_out = ", and no demonstration made it,", "use another store (store=), or remove it"
        self.next = f"Choose another name, or {way_out}."
        super().__init__(adapter, f"Adapter {adapter!r} already exists{whose} in {place}. {self.next}")


class DamagedAdapter(AdapterError, ValueError):
    """The files are not a sound PEFT LoRA adapter. ``problems`` lists all that was found."""

    shown = 20

    def __init__(self, adapter: str, place: str, problems: Sequence[str]) -> None:
        self.place, self.problems = place, list(problems)
        lines = [f"Adapter {adapter!r} in {place} is damaged; nothing was loaded."]
        lines += [f"  {problem[:400]}" for problem in problems[: self.shown]]
        if len(problems) > self.shown:
            lines.append(f"  ... and {len(problems) - self.shown} more")
        super().__init__(adapter, "\n".join(lines))


class UnsupportedAdapter(AdapterError, ValueError):
    """The adapter is sound but uses features that cannot be run here. ``features`` names them."""

    shown = 20

    def __init__(self, adapter: str, features: Sequence[str], hint: str = "") -> None:
        self.features, self.next = list(features), hint
        lines = [f"Adapter {adapter!r} uses what LoRAX cannot run exactly, so nothing was loaded:"]
        lines += [f"  {feature[:400]}" for feature in features[: self.shown]]
        if len(features) > self.shown:
            lines.append(f"  ... and {len(features) - self.shown} more")
        super().__init__(adapter, "\n".join([*lines, *([hint] if hint else [])]))


class IncompatibleAdapter(AdapterError, ValueError):
    """The adapter does not belong to this base. ``mismatches`` lists every disagreement."""

    shown = 12

    def __init__(self, adapter: str, base: str, mismatches: Sequence[str]) -> None:
        self.base, self.mismatches = base, list(mismatches)
        lines = [f"Adapter {adapter!r} cannot be used on {base}; nothing was loaded."]
        lines += [f"  {m}" for m in mismatches[: self.shown]]
        if len(mismatches) > self.shown:
            lines.append(f"  ... and {len(mismatches) - self.shown} more")
        super().__init__(adapter, "\n".join(lines))


class UntrainedAdapter(AdapterError, ValueError):
    """Every low-rank product is zero: the adapter would silently do nothing."""

    def __init__(self, adapter: str) -> None:
        self.next = (
            f"Train it: lorax-vlm train {adapter} --data FOLDER (--style or --task for the scenes of a miniature)"
        )
        super().__init__(
            adapter,
            f"Adapter {adapter!r} changes nothing: every B (or A) matrix is zero, and it is not marked untrained. "
            f"It was probably saved before training. {self.next}",
        )


class TransferRefused(AdapterError, ValueError):
    """An adapter cannot be moved to another base. ``reasons`` lists why."""

    def __init__(self, adapter: str, target: str, reasons: Sequence[str]) -> None:
        self.target, self.reasons = target, list(reasons)
        lines = [f"Adapter {adapter!r} cannot be moved to {target}; nothing was changed.", *(f"  {r}" for r in reasons)]
        super().__init__(adapter, "\n".join(lines))


class SignatureRefused(AdapterError, ValueError):
    """An adapter is not signed by the key that is expected, or cannot be signed with a key."""

    def __init__(self, adapter: str, reason: str) -> None:
        self.reason = reason
        super().__init__(adapter, f"The signature of adapter {adapter!r} is refused; nothing was changed: {reason}.")


class RowFailed(LoraxError, RuntimeError):
    """One row of a batch failed for a reason nobody foresaw, while the others were answered. ``__cause__`` is it."""

    def __init__(self, row: int, error: Exception) -> None:
        self.row, self.error = row, error
        self.__cause__ = error
        super().__init__(f"Row {row} failed unexpectedly, which is a bug: {type(error).__name__}: {error}")


class RemoteError(LoraxError, OSError):
    """Something cannot be fetched from, or sent to, an address. ``url`` is it, without what may be secret in it."""

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = shown_address(url), without_secrets(reason, url)
        super().__init__(f"{self.url}: {self.reason}.")


class InterruptedTransfer(RemoteError):
    """A connection broke off or could not be made; another try may help."""


class AdapterMemoryExceeded(LoraxError, MemoryError):
    """The adapters of one call do not fit the memory for adapters together."""

    def __init__(self, adapters: Sequence[str], needed_bytes: int, budget_bytes: int) -> None:
        self.adapters, self.needed_bytes, self.budget_bytes = list(adapters), needed_bytes, budget_bytes
        super().__init__(
            f"{len(adapters)} adapters need {needed_bytes:,} bytes at once, the budget is {budget_bytes:,}. "
            "Raise the budget (adapter_memory_bytes), or use fewer adapters in a batch."
        )


class TrainingError(LoraxError):
    """Training could not go on."""


class NonFiniteLoss(TrainingError, ArithmeticError):
    """The loss became NaN or infinite; training stopped at once. ``module`` is the first module that overflowed."""

    def __init__(self, step: int, module: str | None, dtype: str) -> None:
        self.step, self.module = step, module
        where = f"The first non-finite output is that of {module}" if module else "Every module's output is finite"
        self.next = "Lower the learning rate."
        if dtype != "float32":
            self.next = f"Lower the learning rate, or use --dtype {'bfloat16 or ' * (dtype != 'bfloat16')}float32."
        super().__init__(f"The loss is not finite at step {step} (base in {dtype}). {where}. {self.next}")


class NothingToResume(TrainingError, LookupError):
    """``resume`` was asked for, but there is no complete checkpoint."""

    def __init__(self, place: str) -> None:
        super().__init__(f"No complete checkpoint in {place}. Start without --resume.")


class RunInUse(TrainingError, BlockingIOError):
    """Another process, or another thread, trains an adapter of that name into that store. ``holder`` says which."""

    def __init__(
        self,
        place: str,
        holder: str,
        hint: str = "Nothing was changed. Wait for it, or choose another name or another store.",
    ) -> None:
        self.place, self.holder = place, holder
        super().__init__(f"The run in {place} is being trained by {holder}. {hint}")


class MissingExtra(LoraxError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}. Install it: pip install 'lorax-vlm[{extra}]'")
