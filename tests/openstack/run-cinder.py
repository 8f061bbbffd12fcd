"""Cinder's API, scheduler and volume service as one process, so that no message broker is needed: transport_url=fake://
is oslo.messaging's own transport within a process. Everything else is Cinder as it is. run-cinder.py --config-file CONFIG"""
import cinder.cmd.volume  # noqa: F401: before anything else, since it makes Python's threads green; and its options
import logging as pylog  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402

import eventlet  # noqa: E402
import eventlet.wsgi  # noqa: E402
import os_brick  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_log import log as logging  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402
from oslo_service import wsgi  # noqa: E402

from cinder import coordination, objects, rpc, service, utils, version  # noqa: E402
from cinder.common import config, constants  # noqa: E402

CONF = cfg.CONF
heartbeat_of_volume = None


class Service(service.Service):
    """Its heartbeat's row is an attribute of the class, as if a process had one service: each needs its own."""

    def report_state(self):
        service.Service.service_id = self.origin_service_id
        try:
            super().report_state()
        finally:
            service.Service.service_id = heartbeat_of_volume


def main():
    global heartbeat_of_volume
    objects.register_all()
    CONF(sys.argv[1:], project='cinder', version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(CONF, 'cinder')
    pylog.captureWarnings(True)
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    os_brick.setup(CONF)
    coordination.COORDINATOR.start()
    rpc.init(CONF)
    scheduler = Service.create(binary=constants.SCHEDULER_BINARY)
    # It waits for the first volume service to say what it can do.
    waiting = eventlet.spawn(scheduler.start)
    eventlet.sleep(0)
    for backend in CONF.enabled_backends:
        CONF.register_opt(cinder.cmd.volume.host_opt, group=backend)
        volume = Service.create(host='%s@%s' % (CONF.host, backend), service_name=backend,
                                binary=constants.VOLUME_BINARY, coordination=False)
        volume.start()
        heartbeat_of_volume = volume.origin_service_id
    waiting.wait()
    service.Service.service_id = heartbeat_of_volume
    app = wsgi.Loader(CONF).load_app('osapi_volume')
    sock = eventlet.listen((CONF.osapi_volume_listen, CONF.osapi_volume_listen_port), backlog=128)
    eventlet.wsgi.server(sock, app, log=pylog.getLogger('wsgi'), keepalive=True, max_size=100)


main()
