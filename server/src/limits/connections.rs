//! How many connections there are, and from where.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Counts connections.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

impl Connections {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    /// One more; `None` where there are too many.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, most_each: usize, most: usize) -> Option<Place> {
        let whose = whose(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *counts;
        let here = counts.each.entry(whose).or_default();
        if counts.all >= most || *here >= most_each {
            if *here == 0 {
                counts.each.remove(&whose);
            }
            return None;
        }
        *here += 1;
        counts.all += 1;
        Some(Place { connections: self.clone(), whose })
    }
}

/// One that is counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    whose: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(here) = counts.each.get_mut(&self.whose) {
            *here -= 1;
            if *here == 0 {
                counts.each.remove(&self.whose);
            }
        }
    }
}

/// Of IPv6, everybody has a whole network of 64 bits.
pub(crate) fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_connections_of_others() {
        let connections = Arc::new(Connections::default());
        let enter = |address: &str| connections.enter(address.parse().unwrap(), 2, 3);
        let first = enter("10.0.0.1").unwrap();
        let _second = enter("::ffff:10.0.0.1").unwrap();
        assert!(enter("10.0.0.1").is_none());
        let _other = enter("2001:db8::1").unwrap();
        // Three are the most.
        assert!(enter("10.0.0.2").is_none());
        drop(first);
        assert!(enter("2001:db8::2").is_some());
        assert!(connections.0.lock().unwrap().each.len() == 2);
    }
}
