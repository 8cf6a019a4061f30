// Caches all files of the page, so that it works offline after the first visit.

const CACHE = 'segmentation-VERSION'; // build_web.py inserts a checksum of all files
const FILES = ['./']; // build_web.py inserts the file names

self.addEventListener('install', (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener('activate', (event) => {
  const old = caches.keys().then((names) => names.filter((name) => name.startsWith('segmentation-') && name !== CACHE));
  event.waitUntil(old.then((names) => Promise.all(names.map((name) => caches.delete(name)))).then(() => self.clients.claim()));
});

async function answer(request) {
  const found = await caches.match(request, {ignoreSearch: request.mode === 'navigate'});
  if (found) return found;
  const response = await fetch(request);
  if (response.ok && request.method === 'GET') (await caches.open(CACHE)).put(request, response.clone());
  return response;
}

self.addEventListener('fetch', (event) => {
  if (new URL(event.request.url).origin === location.origin) event.respondWith(answer(event.request));
});
