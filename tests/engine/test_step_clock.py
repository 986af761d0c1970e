import time

from strop.engine.step_clock import GIBIBYTE, StepClock, peak_bytes


def test_parts_add_up_within_a_step_and_begin_anew() -> None:
    clock = StepClock()
    clock.start()
    for _ in range(2):
        with clock.part("rows"):
            time.sleep(0.02)
    first = clock.metrics()
    assert 0.04 <= first["rows_time"].total <= first["step_time"].total
    clock.start()
    second = clock.metrics()
    assert second["rows_time"].total == 0 and second["rows_time"].count == 1, "a step without the part counts too"
    assert second["step_time"].total < 0.02


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_bytes()
    held = bytearray(before + 2**26)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    assert peak_bytes() - before > 2**25
    assert 0.01 < before / GIBIBYTE < 100
