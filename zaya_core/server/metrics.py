"""What the server counts and measures, for Prometheus. Names carry their unit; no label ever holds text of a client's."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(range(1, 17))


class Metrics:
    """One registry of its own for one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("zaya_requests", "Requests answered.", ("path", "status"), registry=self.registry)
        self.request_seconds = self._seconds("zaya_request_duration_seconds", "From a request's body to its answer's end.")
        self.first_token_seconds = self._seconds("zaya_time_to_first_token_seconds", "From the queue to the first token.")
        self.token_seconds = self._seconds("zaya_inter_token_latency_seconds", "Between tokens; a forward's share its time.")
        self.forward_seconds = self._seconds("zaya_forward_duration_seconds", "One forward of the engine.")
        self.accepted_tokens = Histogram(
            "zaya_accepted_tokens", "Tokens that one forward made final for one completion.", buckets=TOKENS, registry=self.registry
        )
        self.prompt_tokens = Counter("zaya_prompt_tokens", "Tokens of prompts taken.", registry=self.registry)
        self.generated_tokens = Counter("zaya_generated_tokens", "Tokens made final.", registry=self.registry)
        self.running = self._gauge("zaya_completions_running", "Completions that the engine works on.")
        self.waiting = self._gauge("zaya_completions_waiting", "Completions in the queue.")
        self.slots = self._gauge("zaya_kv_slots_reserved", "Places of the K/V pool that running completions hold.")
        self.reused_tokens = self._gauge("zaya_prompt_tokens_reused", "Tokens of prompts that were not read again.")
        self.total_slots = self._gauge("zaya_kv_slots_capacity", "Places of the K/V pool.")

    def show_load(self, *, running: int, waiting: int, num_slots: int, num_reused: int) -> None:
        """How full the engine is, and how many tokens it has not had to read again."""
        self.reused_tokens.set(num_reused)
        self.running.set(running)
        self.waiting.set(waiting)
        self.slots.set(num_slots)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, buckets=SECONDS, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, registry=self.registry)
