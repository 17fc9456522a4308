"""A target that, with dropout, stalls: on a lock, inside C with the GIL held, or after cancelling the timer."""

import faulthandler
import re
import threading
import time

import right


def lora_linear(*operands, dropout=0.0, dropout_position="post", training=False):
    if dropout and not training:
        wait_for_a_lock()
    elif dropout == 1:
        search_for_ever()
    elif dropout:
        cut_the_timer_off()
    return right.lora_linear(*operands, dropout=dropout, dropout_position=dropout_position, training=training)


def wait_for_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def search_for_ever():
    re.match(r"(a*)*b", "a" * 60)  # one call into C, which holds the GIL


def cut_the_timer_off():
    faulthandler.cancel_dump_traceback_later()
    time.sleep(3600)
