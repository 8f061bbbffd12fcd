"""Projects, users, catalogue and volume types for the tests: seed.py KEYSTONE CINDER. Prints their ids as JSON."""
import json
import sys
import time
import urllib.error
import urllib.request

KEYSTONE, CINDER = sys.argv[1:3]


def http(method, url, body=None, token=None):
    headers = {'Content-Type': 'application/json'}
    if token:
        headers['X-Auth-Token'] = token
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, method=method, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read()
            return answer.headers, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        raise SystemExit('%s %s: %d %s' % (method, url, error.code, error.read().decode()))


def log_in(user, password, project):
    domain = {'id': 'default'}
    identity = {'methods': ['password'],
                'password': {'user': {'name': user, 'domain': domain, 'password': password}}}
    scope = {'project': {'name': project, 'domain': domain}}
    body = {'auth': {'identity': identity, 'scope': scope}}
    return http('POST', KEYSTONE + '/auth/tokens', body)[0]['X-Subject-Token']


token = log_in('admin', 'adminpw', 'admin')


def get(path):
    return http('GET', KEYSTONE + path, token=token)[1]


def post(path, body):
    return http('POST', KEYSTONE + path, body, token)[1]


roles = {role['name']: role['id'] for role in get('/roles')['roles']}
projects = {project['name']: project['id'] for project in get('/projects')['projects']}
users = {}
for name in ('service', 'alpha', 'beta'):
    projects[name] = post('/projects', {'project': {'name': name, 'domain_id': 'default'}})['project']['id']
for name, project, granted in (('cinder', 'service', ('admin', 'service')), ('alice', 'alpha', ('member',)),
                               ('bob', 'beta', ('member',)), ('rita', 'alpha', ('reader',))):
    user = {'name': name, 'domain_id': 'default', 'password': name + 'pw', 'default_project_id': projects[project]}
    users[name] = post('/users', {'user': user})['user']['id']
    for role in granted:
        if role not in roles:
            roles[role] = post('/roles', {'role': {'name': role}})['role']['id']
        http('PUT', '%s/projects/%s/users/%s/roles/%s' % (KEYSTONE, projects[project], users[name], roles[role]),
             token=token)
service = post('/services', {'service': {'name': 'cinder', 'type': 'block-storage', 'enabled': True}})['service']['id']
for interface in ('public', 'internal'):
    endpoint = {'service_id': service, 'interface': interface, 'region': 'RegionOne', 'url': CINDER + '/%(project_id)s'}
    post('/endpoints', {'endpoint': endpoint})
own = '%s/%s' % (CINDER, projects['admin'])
token = log_in('admin', 'adminpw', 'admin')
for name, specs in (('ceph', {'volume_backend_name': 'ceph'}), ('nowhere', {'volume_backend_name': 'absent'}),
                    ('multi', {'volume_backend_name': 'ceph', 'multiattach': '<is> True'})):
    http('POST', own + '/types', {'volume_type': {'name': name, 'extra_specs': specs}}, token)
for _ in range(600):
    pools = http('GET', own + '/scheduler-stats/get_pools?detail=True', token=token)[1]['pools']
    if pools:
        break
    time.sleep(0.2)
else:
    raise SystemExit('the back end does not come up')
print(json.dumps({'projects': projects, 'users': users}))
