"""Models side by side: latency, throughput and memory in several engines, measured in interleaved rounds."""

from iformer.benchmark.configurations import Configuration as Configuration
from iformer.benchmark.configurations import combinations as combinations
from iformer.benchmark.rounds import run as run
