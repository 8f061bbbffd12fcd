//! `auth none` towards a service: we only say who we are (`src/auth/none/AuthNoneProtocol.h`). Towards a monitor it is
//! one of the methods of [`super::MonAuth`].

use bytes::{BufMut, Bytes, BytesMut};

use super::Entity;
use super::client::{service_refusal, without_secure};
use super::wire::MODE_AUTHORIZER;
use crate::denc::Put;
use crate::msgr::auth::{AuthError, AuthRequest, ClientAuth, ConnectionMode, Established, method};

/// A login to a service of a cluster without authentication.
#[derive(Debug)]
pub struct NoneAuthorizer {
    entity: Entity,
    global_id: u64,
    modes: Vec<ConnectionMode>,
}

impl NoneAuthorizer {
    pub(super) fn new(entity: Entity, global_id: u64, modes: Vec<ConnectionMode>) -> Self {
        Self { entity, global_id, modes: without_secure(&modes) }
    }
}

impl ClientAuth for NoneAuthorizer {
    fn request(&mut self) -> Result<AuthRequest, AuthError> {
        if self.modes.is_empty() {
            return Err(AuthError::Incompatible(
                "the cluster authenticates with none, which has no key for secure mode".to_owned(),
            ));
        }
        let mut w = BytesMut::new();
        w.put_u8(MODE_AUTHORIZER);
        w.put_value(&self.entity);
        w.put_u64_le(self.global_id);
        Ok(AuthRequest { method: method::NONE, modes: self.modes.clone(), payload: w.freeze() })
    }

    fn bad_method(
        &mut self,
        result: i32,
        allowed_methods: &[u32],
        allowed_modes: &[u32],
    ) -> Result<AuthRequest, AuthError> {
        let (tried, modes) = (method::NONE, &self.modes);
        Err(service_refusal("service", tried, modes, result, allowed_methods, allowed_modes))
    }

    fn reply_more(&mut self, _payload: &[u8]) -> Result<Bytes, AuthError> {
        Err(AuthError::Misbehaved("a challenge where nothing is authenticated".to_owned()))
    }

    fn done(
        &mut self,
        _global_id: u64,
        mode: ConnectionMode,
        _payload: &[u8],
    ) -> Result<Established, AuthError> {
        if !self.modes.contains(&mode) {
            return Err(AuthError::Misbehaved("a connection mode that was not offered".to_owned()));
        }
        Ok(Established::default())
    }
}
