"""`./run bench`: whole durable sign-ins against a real server process, beside the floor of this machine.
`./run bench verification`: verifying assertions and registrations of every format, beside what other libraries need.
`./run bench tpm`: registration and approval with an emulated TPM, split into TPM, agent, wire and server.
`./run bench fido`: commands to our authenticator, in this process and through a real pcscd.

    floor         one P-256 verification (key object kept) and one ES256 token signature: what no design can avoid
    unary         BeginSignIn, WatchSignIn, RedeemSignIn per sign-in
    multiplexed   SignInSession: many sign-ins on few streams
    steps         the unary run with a barrier after each step, so that the server's CPU falls to begin, answer, redeem

Server CPU is the process's own run time as the kernel counts it, divided by the sign-ins. Load, devices and clients are
one further process. Everything is real: TLS, mutual TLS, durable commits, signatures, audit records.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from floor import Floor, measure_floor
from population import Population, populate
from sign_ins import Flow, MultiplexedFlow, UnaryFlow

from keyvouch_bench.server_process import ServerProcess


@dataclass(frozen=True, slots=True)
class Figures:
    """One flow's result. Times in milliseconds, CPU in microseconds per sign-in."""

    flow: str
    sign_ins: int
    per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float
    load_cpu_us: float
    floors: float
    """Server CPU in floors."""


def cpu_seconds(pid: int) -> float:
    """Run time of all threads of a process, as the scheduler counts it."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (OSError, IndexError):
            continue
    return total / 1e9


async def measure(flow: Flow, pid: int, floor: Floor, *, clients: int, seconds: float) -> Figures:
    """Run `clients` loops of sign-ins for `seconds` after a warm-up."""
    await flow.run(clients, 1.0)
    gc.collect()
    gc.freeze()
    server, own, start = cpu_seconds(pid), time.process_time(), time.perf_counter()
    latencies = sorted(await flow.run(clients, seconds))
    elapsed = time.perf_counter() - start
    server, own = cpu_seconds(pid) - server, time.process_time() - own
    count = len(latencies)
    cuts = statistics.quantiles(latencies, n=100)
    return Figures(
        flow=flow.name,
        sign_ins=count,
        per_second=round(count / elapsed, 1),
        p50_ms=round(cuts[49] * 1e3, 2),
        p99_ms=round(cuts[98] * 1e3, 2),
        server_cpu_us=round(server / count * 1e6, 1),
        load_cpu_us=round(own / count * 1e6, 1),
        floors=round(server / count * 1e6 / floor.total_us, 2),
    )


async def measure_steps(population: Population, pid: int, *, clients: int, rounds: int) -> dict[str, float]:
    """Server CPU in microseconds per sign-in for each step, with a barrier between the steps."""
    flow = UnaryFlow(population)
    totals: dict[str, float] = {"begin": 0.0, "answer": 0.0, "redeem": 0.0}
    for warm in (True, *([False] * rounds)):
        people = population.people[:clients]
        before = cpu_seconds(pid)
        begun = await asyncio.gather(*(flow.begin(p) for p in people))
        await asyncio.sleep(0.05)
        after_begin = cpu_seconds(pid)
        await asyncio.gather(*(flow.answered(p, b) for p, b in zip(people, begun, strict=True)))
        await asyncio.sleep(0.05)
        after_answer = cpu_seconds(pid)
        await asyncio.gather(*(flow.redeem(b) for b in begun))
        after_redeem = cpu_seconds(pid)
        if not warm:
            totals["begin"] += after_begin - before
            totals["answer"] += after_answer - after_begin
            totals["redeem"] += after_redeem - after_answer
    return {step: round(seconds / (rounds * clients) * 1e6, 1) for step, seconds in totals.items()}


async def bench(server: ServerProcess, arguments: argparse.Namespace) -> dict[str, object]:
    """Everything, against one running server."""
    floor = measure_floor()
    say(f"floor: verify {floor.verify_us:.1f} us + token {floor.token_us:.1f} us = {floor.total_us:.1f} us")
    async with populate(server, arguments.clients, say) as population:
        results = []
        flows: list[Flow] = [UnaryFlow(population), MultiplexedFlow(population, streams=arguments.streams)]
        for flow in (f for f in flows if arguments.flow in ("", f.name)):
            for _ in range(arguments.repeat):
                figures = await measure(flow, server.pid, floor, clients=arguments.clients, seconds=arguments.seconds)
                results.append(figures)
                say(line(figures))
        steps = await measure_steps(population, server.pid, clients=arguments.clients, rounds=10)
        say("unary server CPU by step: " + ", ".join(f"{step} {us} us" for step, us in steps.items()))
    return {
        "machine": machine(),
        "clients": arguments.clients,
        "floor": asdict(floor),
        "results": [asdict(r) for r in results],
        "steps_us": steps,
    }


def line(f: Figures) -> str:
    """One flow for people."""
    return (
        f"{f.flow:<12} {f.per_second:8.1f} sign-ins/s   p50 {f.p50_ms:6.2f} ms   p99 {f.p99_ms:6.2f} ms   "
        f"server CPU {f.server_cpu_us:6.1f} us = {f.floors:.2f} floors   load CPU {f.load_cpu_us:6.1f} us"
    )


def machine() -> dict[str, object]:
    """What the figures were made on."""
    model = next(
        (x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


def say(text: str) -> None:
    """Progress for people, apart from the result."""
    sys.stderr.write(text + "\n")


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="./run bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "part",
        nargs="?",
        default="sign-ins",
        choices=("sign-ins", "verification", "tpm", "fido"),
        help="what to measure",
    )
    parser.add_argument("--clients", type=int, default=64, help="sign-ins under way at a time (default: 64)")
    parser.add_argument("--streams", type=int, default=4, help="SignInSession streams they share (default: 4)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a run (default: 8)")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each flow (default: 2)")
    parser.add_argument("--flow", default="", choices=("unary", "multiplexed"), help="measure one flow only")
    parser.add_argument(
        "--rounds", type=int, default=15, help="verification, tpm, fido: rounds of which the median counts (15)"
    )
    parser.add_argument("--store", default="", help="sign-ins: an empty PostgreSQL database (default: durable SQLite)")
    parser.add_argument("--peers", action="store_true", help="verification: measure other libraries, too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    arguments = parser.parse_args()
    if arguments.part == "verification":
        return verification(arguments)
    if arguments.part == "tpm":
        return emulated_tpm(arguments)
    if arguments.part == "fido":
        return virtual_fido(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="keyvouch-bench-") as folder,
        ServerProcess.make(Path(folder), store=arguments.store) as server,
    ):
        server.start()
        result = asyncio.run(bench(server, arguments))
        server.stop()
    if arguments.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


def verification(arguments: argparse.Namespace) -> int:
    """Measure verifiers; print a table or JSON."""
    from verification import measure_verification, table

    result = measure_verification(rounds=arguments.rounds, peers=arguments.peers, say=say)
    for cell in result["without"]:
        say(f"{cell['verifier']}, {cell['what']}: {cell['why']}")
    shown = json.dumps({"machine": machine()} | result, indent=1) if arguments.json else table(result)
    sys.stdout.write(shown + "\n")
    return 0


def emulated_tpm(arguments: argparse.Namespace) -> int:
    """Measure the ceremonies with a TPM; print a table or JSON."""
    from tpm import measure_tpm, table

    result = measure_tpm(rounds=arguments.rounds, cpu=cpu_seconds, say=say)
    shown = json.dumps({"machine": machine()} | result, indent=1) if arguments.json else table(result)
    sys.stdout.write(shown + "\n")
    return 0


def virtual_fido(arguments: argparse.Namespace) -> int:
    """Measure our authenticator; print a table or JSON."""
    from fido import measure_fido, table

    result = measure_fido(rounds=arguments.rounds, say=say)
    shown = json.dumps({"machine": machine()} | result, indent=1) if arguments.json else table(result)
    sys.stdout.write(shown + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
