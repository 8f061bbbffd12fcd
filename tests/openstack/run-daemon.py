"""One of Cinder's daemons as its package starts it, several of which share one SQLite: run-daemon.py api|scheduler|volume ARG...

A transaction of SQLite's that has read cannot write any more if another process has written meanwhile: the request fails
at once, whatever the time-out. So each begins as one that writes, and waits its turn."""
import importlib
import sys

daemon = importlib.import_module('cinder.cmd.' + sys.argv.pop(1))

from sqlalchemy import engine, event  # noqa: E402: the daemon makes Python's threads green first


@event.listens_for(engine.Engine, 'before_cursor_execute', retval=True)
def begin_as_writer(connection, cursor, statement, parameters, context, many):
    return 'BEGIN IMMEDIATE' if statement == 'BEGIN' else statement, parameters


daemon.main()
