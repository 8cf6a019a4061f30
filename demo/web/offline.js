// Keeps all that the page is made of, so that it works without a connection once it was loaded.

const CACHE = 'segmentation-VERSION'; // the build puts a checksum of all files here
const FILES = ['./']; // and their names here

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
