//! Things with small stable numbers.

/// Values by number; a freed number is used again.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { places: Vec::new() }
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let free = self.places.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(value);
        // Every slab is bounded far below that by its user.
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    pub(crate) fn at(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(crate) fn at_mut(&mut self, place: u32) -> Option<&mut T> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, place: u32) -> Option<T> {
        let value = self.places.get_mut(place as usize)?.take();
        while matches!(self.places.last(), Some(None)) {
            self.places.pop();
        }
        value
    }

    pub(crate) fn len(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// One past the highest number in use.
    pub(crate) fn end(&self) -> u32 {
        self.places.len() as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..)
            .zip(&self.places)
            .filter_map(|(n, v)| Some((n, v.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        (0u32..)
            .zip(&mut self.places)
            .filter_map(|(n, v)| Some((n, v.as_mut()?)))
    }

    pub(crate) fn find(&self, wanted: impl Fn(&T) -> bool) -> Option<u32> {
        self.iter().find(|(_, value)| wanted(value)).map(|(n, _)| n)
    }
}
