"""TLS in front of other services: run-tls.py FOLDER PORT:TARGET... It makes an authority of its own, FOLDER/ca.pem."""
import datetime
import ipaddress
import os
import socket
import ssl
import sys
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

folder = sys.argv[1]
now = datetime.datetime.now(datetime.timezone.utc)


def certify(name, key, by_name, by_key, *extensions):
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    made = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(by_name))
    made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(30))
    for extension, critical in extensions:
        made = made.add_extension(extension, critical)
    return made.sign(by_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(client, target):
    try:
        client = context.wrap_socket(client, server_side=True)
        server = socket.create_connection(('127.0.0.1', target))
    except OSError:
        client.close()
        return
    threading.Thread(target=copy, args=(server, client), daemon=True).start()
    copy(client, server)


def listen(port, target):
    listener = socket.create_server(('127.0.0.1', port), backlog=64)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, target), daemon=True).start()


authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address('127.0.0.1'))])
ca = certify('tests', authority, 'tests', authority, (x509.BasicConstraints(ca=True, path_length=0), True))
other = certify('others', own, 'others', own, (x509.BasicConstraints(ca=True, path_length=0), True))
pem = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
pem += certify('here', own, 'tests', authority, (alternative, False))
for name, text in (('ca.pem', ca), ('other.pem', other), ('own.pem', pem)):
    with open(os.path.join(folder, name), 'wb') as file:
        file.write(text)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.path.join(folder, 'own.pem'))
ports = [tuple(map(int, pair.split(':'))) for pair in sys.argv[2:]]
for port, target in ports:
    threading.Thread(target=listen, args=(port, target)).start()
