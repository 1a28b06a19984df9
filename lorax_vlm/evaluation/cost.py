"""What answering costs: time of one question alone, throughput in batches, and peak memory."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from lorax_vlm.data.examples import Example
from lorax_vlm.evaluation.questions import Ask, choose_metric, score_answers
from lorax_vlm.types import Answer, BenchmarkRow

_SAMPLE_EVERY_S = 0.01


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
    warm_up: int = 2,
) -> BenchmarkRow:
    """Ask all questions in batches and some of them one by one.

    Args:
        ask: The base or an adapter.
        examples: Questions on loaded images.
        device: Where the model is.
        model: Name of the base.
        adapter: Name of the adapter, None for the base.
        judged: Whether the examples' answers are known.
        alone: Questions that are asked one by one, for the latency.
        warm_up: Questions asked before timing starts.
    """
    images, questions = [example.image for example in examples], [example.question for example in examples]
    ask(images[:warm_up], questions[:warm_up])
    with watched_memory(device) as peak:
        start = time.perf_counter()
        answers = ask(images, questions)
        batched_s = time.perf_counter() - start
        latencies = []
        for image, question in zip(images[:alone], questions[:alone], strict=True):
            start = time.perf_counter()
            ask([image], [question])
            latencies.append(time.perf_counter() - start)
    p50, p95 = np.quantile(latencies, (0.5, 0.95))
    scores: dict[str, list[float]] = defaultdict(list)
    if judged:
        for record in score_answers(answers, examples, choose_metric(examples)):
            scores[record.kind].append(record.score)
    total = [score for values in scores.values() for score in values]
    return BenchmarkRow(
        model=model,
        adapter=adapter,
        accuracy=sum(total) / len(total) if judged else None,
        by_kind={kind: sum(values) / len(values) for kind, values in scores.items() if kind},
        latency_p50_s=float(p50),
        latency_p95_s=float(p95),
        questions_per_s=len(examples) / batched_s,
        tokens_per_s=sum(answer.tokens for answer in answers if isinstance(answer, Answer)) / batched_s,
        peak_bytes=peak.bytes,
    )
