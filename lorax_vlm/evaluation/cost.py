"""What answering costs: time of one question alone, throughput in batches, and peak memory."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.opening import pictures_in_turn
from lorax_vlm.evaluation.questions import Ask, accuracy_of, choose_metric, mean_score, score_answers, with_metric
from lorax_vlm.evaluation.results import BenchmarkRow
from lorax_vlm.types import ModelText

_SAMPLE_EVERY_S = 0.01
_WARM_UP = 2
"""Questions that are asked before timing starts."""


@dataclass
class MemoryPeak:
    """Most memory seen while watching."""

    bytes: int = 0


@contextmanager
def watched_memory(device: torch.device) -> Iterator[MemoryPeak]:
    """Watch memory during a block: a GPU's allocator, or this process's resident memory."""
    peak = MemoryPeak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    done, process = threading.Event(), psutil.Process()

    def sample() -> None:
        while not done.wait(_SAMPLE_EVERY_S):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    peak.bytes = process.memory_info().rss
    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss)


def benchmark_questions(
    ask: Ask,
    examples: Sequence[Example],
    device: torch.device,
    *,
    model: str,
    adapter: str | None,
    judged: bool,
    alone: int = 20,
) -> BenchmarkRow:
    """Ask all questions in batches and some of them one by one.

    Args:
        ask: The base or an adapter.
        examples: Questions. Opening their images is not counted.
        device: Where the model is.
        model: Name of the base.
        adapter: Name of the adapter, None for the base.
        judged: Whether the examples' answers are known.
        alone: Questions that are asked one by one, for the latency.

    Raises:
        UsageError: ``alone`` is below 1.
        ImageError: An image cannot be read.
        LoraxError: No question could be answered; that of the first.
    """
    if alone < 1:
        raise UsageError(f"At least 1 question must be asked alone, got {alone}.")
    with watched_memory(device) as peak:
        answers, seconds, latencies = _timed(ask, examples, alone)
    failures = [answer for answer in answers if isinstance(answer, LoraxError)]
    if not latencies:
        raise failures[0]
    p50, p95 = np.quantile(latencies, (0.5, 0.95))
    records = score_answers(answers, examples) if judged else ()
    metric = choose_metric(examples) if judged else ""
    counted = with_metric(records, metric)
    kinds = dict.fromkeys(record.kind for record in counted if record.kind)
    accuracy = accuracy_of(counted) if judged else None
    return BenchmarkRow(
        model=model,
        adapter=adapter,
        accuracy=accuracy.value if accuracy else None,
        by_kind={kind: mean_score([record for record in counted if record.kind == kind]) for kind in kinds},
        latency_p50_s=float(p50),
        latency_p95_s=float(p95),
        questions_per_s=(len(examples) - len(failures)) / seconds,
        tokens_per_s=sum(answer.tokens for answer in answers if isinstance(answer, ModelText)) / seconds,
        peak_bytes=peak.bytes,
        metric=metric,
        interval=accuracy,
        failed=len(failures),
        first_failure=str(failures[0]) if failures else "",
    )


def _timed(
    ask: Ask, examples: Sequence[Example], alone: int
) -> tuple[list[ModelText | LoraxError], float, list[float]]:
    """Answers to all questions, how long they took, and how long each of some took alone; seconds."""
    answers: list[ModelText | LoraxError] = []
    seconds, latencies = 0.0, list[float]()
    for rows, images in pictures_in_turn(examples):
        questions = [examples[row].question for row in rows]
        if not answers:
            ask(images[:_WARM_UP], questions[:_WARM_UP])
        start = time.perf_counter()
        answers += ask(images, questions)
        seconds += time.perf_counter() - start
        for place in range(len(rows)):
            if len(latencies) == alone:
                break
            start = time.perf_counter()
            answered = ask(images[place : place + 1], questions[place : place + 1])
            if not isinstance(answered[0], LoraxError):
                latencies.append(time.perf_counter() - start)
    return answers, seconds, latencies
