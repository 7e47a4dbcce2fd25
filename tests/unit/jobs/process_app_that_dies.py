"""An application that no child process can load: it ends with it."""

import os
import signal

os.kill(os.getpid(), signal.SIGSEGV)
