"""Keystone under waitress: run-keystone.py PORT CONFIG"""
import os
import sys

port, conf = int(sys.argv[1]), sys.argv[2]
os.environ['OS_KEYSTONE_CONFIG_FILES'] = conf
sys.argv[1:] = []
from keystone.server import wsgi  # noqa: E402: it reads both
from waitress import serve  # noqa: E402

# One request at a time: of two users who log in at once, SQLite fails one.
serve(wsgi.initialize_public_application(), host='127.0.0.1', port=port, threads=1, ident=None)
